// Rows in parallel: pieces of about equal work, taken by whoever is free.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <vector>

namespace torch_picard {

constexpr int64_t kWorthwhile = 1 << 15;  // element operations a thread
constexpr int kPiecesPerThread = 16;

// Calls work(begin, end) on pieces of [0, rows). cost(i) is what the rows
// before i cost together, in element operations; it never falls. Results must
// not depend on the pieces; they begin at multiples of `unit`.
template <class Cost, class Work>
void parallel_rows(int64_t rows, const Cost& cost, const Work& work,
                   int64_t unit = 1) {
  if (rows <= 0) return;
  const int64_t total = cost(rows);
  const int64_t threads =
      std::min<int64_t>(torch::stable::get_num_threads(),
                        std::max<int64_t>(1, total / kWorthwhile));
  if (threads <= 1) {
    work(int64_t(0), rows);
    return;
  }
  const int64_t pieces = std::min(rows, threads * kPiecesPerThread);
  std::vector<int64_t> start(pieces + 1, rows);
  start[0] = 0;
  for (int64_t p = 1; p < pieces; p++) {
    const int64_t goal = total / pieces * p;
    int64_t low = start[p - 1], high = rows;  // the first row past the goal
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (cost(middle) < goal)
        low = middle + 1;
      else
        high = middle;
    }
    start[p] = std::min(rows, (low + unit - 1) / unit * unit);
  }
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    for (int64_t p; (p = next.fetch_add(1)) < pieces;)
      if (start[p] < start[p + 1]) work(start[p], start[p + 1]);
  });
}

}  // namespace torch_picard
