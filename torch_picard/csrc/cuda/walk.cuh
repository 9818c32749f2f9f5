// Graphs, segments, and which rows a block works on.
#pragma once

#include "vec.cuh"

namespace torch_picard {
namespace cuda {
namespace {

constexpr uint32_t kNone = ~0u;  // no row of h

__device__ inline int64_t clamp(int64_t v, int64_t low, int64_t high) {
  return v < low ? low : v > high ? high : v;
}

struct Span {
  int64_t first;
  uint32_t length;
};

struct Graph {
  const void* rowptr;
  const void* col;
  bool wide;
  int64_t rows, entries, sources;
  int shift;          // log2 of the lanes of a slot
  uint32_t longest;   // longer rows are left to
  int64_t gatherers;  // the first blocks, this many

  __device__ int64_t at(const void* p, int64_t i) const {
    return wide ? __ldg(static_cast<const long long*>(p) + i)
                : __ldg(static_cast<const int*>(p) + i);
  }
  __device__ Span span(int64_t row) const {
    const int64_t first = clamp(at(rowptr, row), 0, entries);
    const int64_t last = clamp(at(rowptr, row + 1), first, entries);
    return {first, uint32_t(last - first)};
  }
  // The row of h that an entry names; kNone if there is no such row.
  __device__ uint32_t source(int64_t entry) const {
    const int64_t j = at(col, entry);
    return j >= 0 && j < sources ? uint32_t(j) : kNone;
  }
};

__device__ bool is_active(const Segments& segments, int64_t row) {
  if (!segments.active) return true;
  int64_t low = 0;
  if (segments.ptr) {  // the last segment that does not begin behind the row
    int64_t high = segments.size - 1;
    while (low < high) {
      const int64_t middle = (low + high + 1) / 2;
      if (segments.ptr[middle] <= row)
        low = middle;
      else
        high = middle - 1;
    }
  }
  return segments.active[low];
}

// The rows of a block. Most blocks have one row a slot. The first few have
// those rows that are longer than graph.longest, one after the other, always
// in the same order, of which every slot has a slice.
struct Walk {
  const bool whole;
  bool inside = false, active = false;
  int64_t row = 0;
  Span span = {0, 0};
  uint32_t begin = 0;  // of the slice
  int length = 0;
  int most = 0;  // of the longest in the warp

  __device__ explicit Walk(const Graph& graph)
      : whole(blockIdx.x < graph.gatherers),
        base_(int64_t(blockIdx.x) * kThreads) {}

  // Goes on to the next row. All threads must call.
  __device__ bool next(const Graph& graph, const Segments& segments,
                       const Lane& lane) {
    return whole ? next_long(graph, segments, lane)
                 : next_own(graph, segments, lane);
  }

  // Whether the lane's slot finishes the row.
  __device__ bool finishes(const Graph& graph, const Lane& lane) const {
    return whole ? lane.slot == 0 : active && span.length <= graph.longest;
  }

 private:
  int64_t base_;       // of the rows looked at next
  int warp_ = kWarps;  // of the rows looked at last: those of this warp and
  unsigned left_ = 0;  // with these bits are next

  __device__ bool next_own(const Graph& graph, const Segments& segments,
                           const Lane& lane) {
    if (warp_ == 0) return false;
    warp_ = 0;
    row = (blockIdx.x - graph.gatherers) * lane.slots() + lane.slot;
    inside = row < graph.rows;
    active = inside && is_active(segments, row);
    if (active) span = graph.span(row);
    length = span.length <= graph.longest ? int(span.length) : 0;
    most = lane.most(length);
    return true;
  }

  __device__ bool next_long(const Graph& graph, const Segments& segments,
                            const Lane& lane) {
    __shared__ unsigned masks[kWarps];
    const int64_t step = graph.gatherers * kThreads;
    while (left_ == 0) {
      if (++warp_ >= kWarps) {
        if (base_ >= graph.rows) return false;
        row = base_ + threadIdx.x;
        const bool found = row < graph.rows &&
                           graph.span(row).length > graph.longest &&
                           is_active(segments, row);
        const unsigned mask = __ballot_sync(kAll, found);
        __syncthreads();  // all have read the masks before
        if (threadIdx.x % 32 == 0) masks[threadIdx.x / 32] = mask;
        __syncthreads();
        base_ += step;
        warp_ = 0;
      }
      left_ = masks[warp_];
    }
    row = base_ - step + warp_ * 32 + __ffs(left_) - 1;
    left_ &= left_ - 1;
    span = graph.span(row);
    const uint32_t each = (span.length - 1) / lane.slots() + 1;
    begin = min(lane.slot * each, span.length);
    length = int(min(each, span.length - begin));
    most = int(each);
    inside = active = true;
    return true;
  }
};

}  // namespace
}  // namespace cuda
}  // namespace torch_picard
