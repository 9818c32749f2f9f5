// How the kernels are started. Every sum is taken in an order that only the
// sizes decide, so that results are equal bit by bit from run to run: no
// atomic additions, but parts in scratch memory, which a further kernel sums.
#include <algorithm>
#include <cassert>

#include "elements.cuh"
#include "rows.cuh"

namespace torch_picard {
namespace cuda {
namespace {

constexpr int kLong = 128;        // longer rows get a whole block
constexpr int kSliced = 1 << 15;  // parts that one block still sums well

// -- sums of parts ------------------------------------------------------------

// Which parts a segment has: `per_row` for each of its rows or, without ptr,
// `per_row` in all.
struct Parts {
  Segments segments;
  int64_t rows, per_row;

  __device__ int64_t begin(int64_t s) const {
    return (segments.ptr ? clamp(segments.ptr[s], 0, rows) : s) * per_row;
  }
};

// Each segment in `slices` blocks; `out` is [segments, slices, W].
template <int W>
__global__ void __launch_bounds__(1024)
    sum_kernel(const double* in, const Parts parts, int slices, double* out) {
  const int64_t s = blockIdx.x / slices, slice = blockIdx.x % slices;
  const int64_t begin = parts.begin(s), end = parts.begin(s + 1);
  const bool on = !parts.segments.active || parts.segments.active[s];
  const int64_t each = (end - begin + slices - 1) / slices;
  const int64_t first = begin + slice * each;
  const int64_t last = on ? min(first + each, end) : first;
  double sum[W] = {};
#pragma unroll 4
  for (int64_t i = first + threadIdx.x; i < last; i += blockDim.x) {
    const auto more = load_constant<W>(in + i * W);
#pragma unroll
    for (int k = 0; k < W; k++) sum[k] += more[k];
  }
  block_sum(sum, out);
}

__global__ void check_kernel(const Graph graph, const Segments segments,
                             int* found) {
  const int64_t step = int64_t(gridDim.x) * blockDim.x;
  const int64_t start = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  int bad = 0;
  if (start == 0) {
    if (graph.at(graph.rowptr, 0) != 0) bad |= kStart;
    if (graph.at(graph.rowptr, graph.rows) != graph.entries) bad |= kEnd;
    if (segments.ptr && (segments.ptr[0] != 0 ||
                         segments.ptr[segments.size] != graph.rows))
      bad |= kPtr;
  }
  for (int64_t i = start; i < graph.rows; i += step)
    if (graph.at(graph.rowptr, i + 1) < graph.at(graph.rowptr, i))
      bad |= kFalls;
  for (int64_t e = start; e < graph.entries; e += step)
    if (graph.source(e) == kNone) bad |= kOutside;
  if (segments.ptr)
    for (int64_t s = start; s < segments.size; s += step)
      if (segments.ptr[s + 1] < segments.ptr[s]) bad |= kPtr;
  if (found) {
    if (bad) atomicOr(found, bad);
    return;
  }
  assert(!(bad & kStart) && "rowptr must start at 0");
  assert(!(bad & kEnd) && "rowptr must end at the length of col");
  assert(!(bad & kFalls) && "rowptr must not decrease");
  assert(!(bad & kOutside) && "col must be in [0, rows of h)");
  assert(!(bad & kPtr) && "ptr must rise from 0 to the number of rows");
}

// -- on the host --------------------------------------------------------------

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), int64_t blocks, int threads,
            const Place& place, const Arguments&... arguments) {
  if (blocks > 0)
    kernel<<<unsigned(blocks), threads, 0, place.stream>>>(arguments...);
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t processors(const Place& place) {
  int count = 1;
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, place.device);
  return count;
}

template <class T>
struct Type {
  using type = T;
};

template <class F>
void with_type(Dtype type, F f) {
  switch (type) {
    case Dtype::f32:
      return f(Type<float>{});
    case Dtype::f64:
      return f(Type<double>{});
    case Dtype::bf16:
      return f(Type<BF16>{});
    case Dtype::f16:
      return f(Type<F16>{});
  }
}

// Whether rows of this many columns can be moved N at a time.
template <class... Pointers>
bool fits(int64_t channels, int64_t N, Pointers... pointers) {
  const uintptr_t bits = (uintptr_t(0) | ... | uintptr_t(pointers));
  return channels % N == 0 && bits % 16 == 0;
}

template <class T>
constexpr int kLanes = 16 / int(sizeof(T));  // elements of a vector

// Decides how the rows are dealt out, and to how many blocks.
int64_t deal(Graph& graph, int64_t vectors, const Place& place) {
  const int64_t room = 8 * processors(place);  // blocks at a time, about
  graph.shift = lanes_for(vectors);
  const int64_t blocks = ceil_div(graph.rows, kThreads >> graph.shift);
  int64_t longest = kLong;
  if (blocks > 2 * room)  // enough to do: spare only what sticks out
    longest = std::max(longest, 2 * graph.entries / graph.rows);
  graph.longest = uint32_t(std::min<int64_t>(longest, INT32_MAX));
  graph.gatherers = 0;
  if (graph.entries > graph.longest)
    graph.gatherers = std::min(ceil_div(graph.rows, kThreads), room / 2);
  return graph.gatherers + blocks;
}

template <int W>
void sum(const double* in, const Parts& parts, double* out,
         const Place& place) {
  const int64_t size = parts.segments.size;
  const int64_t usual =
      parts.segments.ptr
          ? parts.rows * parts.per_row / std::max<int64_t>(size, 1)
          : parts.per_row;
  const int threads = usual > 2048 ? 1024 : usual > 128 ? kThreads : 32;
  int slices = 1;
  if (usual > kSliced)
    slices = int(std::min<int64_t>(256, ceil_div(usual, 4096)));
  double* to = slices > 1 ? place.scratch(size * slices * W) : out;
  launch(sum_kernel<W>, size * slices, threads, place, in, parts, slices, to);
  if (slices > 1)
    sum<W>(to, {{nullptr, nullptr, size}, size, slices}, out, place);
}

template <class Op>
void start_rows(const Op& op, Graph graph, const Segments& segments,
                double* stats, const Place& place) {
  const int64_t vectors = op.job.channels / Op::N;
  const int64_t blocks = deal(graph, vectors, place);
  const int64_t count = segments.ptr ? graph.rows : blocks;
  double* parts = stats ? place.scratch(count * kSums) : nullptr;
  launch(rows_kernel<Op>, blocks, kThreads, place, op, graph, segments, parts);
  const int64_t per_row = segments.ptr ? 1 : blocks;
  if (stats) sum<kSums>(parts, {segments, graph.rows, per_row}, stats, place);
}

template <class Op>
void start_elements(const Op& op, int64_t rows, const Segments& segments,
                    bool by_block, double* out, const Place& place) {
  Cells cells;
  cells.rows = rows;
  cells.channels = op.job.channels;
  const int64_t vectors = ceil_div(cells.channels, Op::N);
  cells.shift = lanes_for(vectors);
  const int64_t width = (1 << cells.shift) * Op::N;
  // A large tensor keeps all processors busy with kUnroll vectors a lane.
  const int64_t small = rows * vectors / (1024 * processors(place));
  cells.each = width * std::max<int64_t>(1, std::min<int64_t>(kUnroll, small));
  cells.per_row = ceil_div(cells.channels, cells.each);
  const int64_t blocks = ceil_div(cells.count(), kThreads >> cells.shift);
  const int64_t count = by_block ? blocks : cells.count();
  double* parts = out ? place.scratch(count * Op::kParts) : nullptr;
  launch(elements_kernel<Op>, blocks, kThreads, place, op, cells, segments,
         parts, by_block);
  if (!out) return;
  Parts which = {segments, rows, cells.per_row};
  if (by_block) which = {{nullptr, nullptr, 1}, 1, blocks};
  sum<Op::kParts>(parts, which, out, place);
}

Graph graph_of(const void* rowptr, const void* col, bool wide, int64_t rows,
               int64_t entries, int64_t sources) {
  return {rowptr, col, wide, rows, entries, sources, 2, 0, 0};
}

}  // namespace

void check(const Propagate& job, int64_t rows, const Segments& segments,
           int* found, const Place& place) {
  const Graph graph = graph_of(job.rowptr, job.col, job.wide, rows,
                               job.entries, job.sources);
  const int64_t most = std::max({rows, job.entries, segments.size});
  const int64_t blocks = std::min(ceil_div(most, kThreads) + 1,
                                  8 * processors(place));
  launch(check_kernel, blocks, kThreads, place, graph, segments, found);
}

void propagate(Propagate job, int64_t rows, const Segments& segments,
               double* stats, const Place& place) {
  const Graph graph = graph_of(job.rowptr, job.col, job.wide, rows,
                               job.entries, job.sources);
  with_type(job.message, [&](auto t) {
    using H = typename decltype(t)::type;
    const auto start = [&](auto op) {
      start_rows(op, graph, segments, stats, place);
    };
    const bool vector = fits(job.channels, kLanes<H>, job.h, job.x, job.bias,
                             job.inject, job.y, job.z, job.arg);
    const bool max = job.reduce == Reduce::max;
    if (vector && max)
      start(Aggregate<H, kLanes<H>, true>{job});
    else if (vector)
      start(Aggregate<H, kLanes<H>, false>{job});
    else if (max)
      start(Aggregate<H, 1, true>{job});
    else
      start(Aggregate<H, 1, false>{job});
  });
}

void max_backward(const MaxBackward& job, int64_t rows, int64_t entries,
                  int64_t sources, const Place& place) {
  const Graph graph =
      graph_of(job.colptr, job.row, job.wide, rows, entries, sources);
  with_type(job.state, [&](auto t) {
    using G = typename decltype(t)::type;
    // Narrower results, of float gradients, must start at whole words, too.
    if (fits(job.channels, kLanes<G>, job.g, job.arg, job.out))
      start_rows(Picked<G, kLanes<G>>{job}, graph, {}, nullptr, place);
    else
      start_rows(Picked<G, 1>{job}, graph, {}, nullptr, place);
  });
}

void sampled(const Sampled& job, int64_t rows, int64_t entries,
             int64_t sources, const Place& place) {
  Graph graph = graph_of(job.rowptr, job.col, job.wide, rows, entries, sources);
  with_type(job.message, [&](auto t) {
    using H = typename decltype(t)::type;
    constexpr int N = kLanes<H>;
    if (fits(job.channels, N, job.g, job.h, job.arg)) {
      const int64_t blocks = deal(graph, job.channels / N, place);
      launch(sampled_kernel<H, N>, blocks, kThreads, place, Dot<H, N>{job},
             graph);
    } else {
      const int64_t blocks = deal(graph, job.channels, place);
      launch(sampled_kernel<H, 1>, blocks, kThreads, place, Dot<H, 1>{job},
             graph);
    }
  });
}

void update(Update job, int64_t rows, const Segments& segments, double* stats,
            const Place& place) {
  with_type(job.state, [&](auto t) {
    using X = typename decltype(t)::type;
    const int64_t channels = rows == 1 ? 0 : job.channels;
    const bool by_block = !segments.ptr;
    if (fits(channels, kLanes<X>, job.x, job.z, job.y))
      start_elements(Smooth<X, kLanes<X>>{job}, rows, segments, by_block,
                     stats, place);
    else
      start_elements(Smooth<X, 1>{job}, rows, segments, by_block, stats,
                     place);
  });
}

void update_backward(UpdateBackward job, int64_t rows,
                     const Segments& segments, double* galpha,
                     const Place& place) {
  with_type(job.state, [&](auto t) {
    using X = typename decltype(t)::type;
    const int64_t channels = rows == 1 ? 0 : job.channels;
    if (fits(channels, kLanes<X>, job.gy, job.z, job.x, job.gx, job.gz))
      start_elements(SmoothBackward<X, kLanes<X>>{job}, rows, segments, true,
                     galpha, place);
    else
      start_elements(SmoothBackward<X, 1>{job}, rows, segments, true, galpha,
                     place);
  });
}

}  // namespace cuda
}  // namespace torch_picard
