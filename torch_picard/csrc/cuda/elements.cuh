// What goes over the elements of tensors: the update and its gradient.
#pragma once

#include "walk.cuh"

namespace torch_picard {
namespace cuda {
namespace {

// How an elementwise kernel cuts a tensor: each row into cells, as long as
// the lanes of a slot move at once.
struct Cells {
  int64_t rows, channels, each, per_row;
  int shift;

  __host__ __device__ int64_t count() const { return rows * per_row; }
};

template <class X, int kN>
struct Smooth {
  using A = Acc<X>;
  static constexpr int N = kN, kParts = 2, kBlocks = 3;
  Update job;
  A alpha = A(job.alpha), rest = A(1.0 - job.alpha);

  template <int M>
  __device__ void step(const Pack<X, M>& x, const Pack<X, M>& z, X* to,
                       A (&sums)[kParts]) const {
    A y[M];
#pragma unroll
    for (int n = 0; n < M; n++) {
      const A a = x[n], b = z[n], d = b - a;
      sums[0] += d * d;
      sums[1] += b * b;
      y[n] = alpha != 0 ? alpha * a + rest * b : b;
    }
    store<M>(y, to);
  }

  __device__ void run(int64_t begin, int size, const Lane& lane,
                      A (&sums)[kParts]) const {
    const X* x = static_cast<const X*>(job.x) + begin;
    const X* z = static_cast<const X*>(job.z) + begin;
    X* y = static_cast<X*>(job.y) + begin;
    Pack<X, N> old[kUnroll], image[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; u++) {
      const int at = (u * lane.width + lane.id) * N;
      if (at + N <= size) old[u] = load<N>(x + at), image[u] = load<N>(z + at);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; u++) {
      const int at = (u * lane.width + lane.id) * N;
      if (at + N <= size) step<N>(old[u], image[u], y + at, sums);
    }
    if constexpr (N > 1)
      for (int at = size - size % N + lane.id; at < size; at += lane.width)
        step<1>(load<1>(x + at), load<1>(z + at), y + at, sums);
  }

  __device__ void copy(int64_t begin, int size, const Lane& lane) const {
    const int64_t end = begin + size;
    for (int64_t at = begin + lane.id; at < end; at += lane.width)
      static_cast<X*>(job.y)[at] = static_cast<const X*>(job.x)[at];
  }
};

template <class X, int kN>
struct SmoothBackward {
  using A = Acc<X>;
  static constexpr int N = kN, kParts = 1, kBlocks = 4;
  UpdateBackward job;
  A alpha = A(job.alpha), rest = A(1.0 - job.alpha);

  template <int M>
  __device__ void step(int64_t at, const Pack<X, M>& gy, const Pack<X, M>& z,
                       const Pack<X, M>& x, A (&sums)[kParts]) const {
    A gx[M], gz[M];
#pragma unroll
    for (int n = 0; n < M; n++) {
      const A g = gy[n];
      gx[n] = alpha * g;
      gz[n] = rest * g;
      if (job.activation == Activation::relu && z[n] <= 0) gz[n] = 0;
      if (job.activation == Activation::tanh) gz[n] *= 1 - z[n] * z[n];
      if (job.x) sums[0] += g * (x[n] - z[n]);
    }
    if (job.gx) store<M>(gx, static_cast<X*>(job.gx) + at);
    store<M>(gz, static_cast<X*>(job.gz) + at);
  }

  template <int M>
  __device__ Pack<X, M> maybe(const void* p, int64_t at) const {
    Pack<X, M> pack;
    if (p) pack = load<M>(static_cast<const X*>(p) + at);
    return pack;
  }

  __device__ void run(int64_t begin, int size, const Lane& lane,
                      A (&sums)[kParts]) const {
    const X* gy = static_cast<const X*>(job.gy);
    constexpr int kAtOnce = 2;
#pragma unroll 1
    for (int first = lane.id * N; first + N <= size;
         first += kAtOnce * lane.width * N) {
      Pack<X, N> g[kAtOnce], z[kAtOnce], x[kAtOnce];
#pragma unroll
      for (int u = 0; u < kAtOnce; u++) {
        const int at = first + u * lane.width * N;
        if (at + N <= size) {
          g[u] = load<N>(gy + begin + at);
          z[u] = maybe<N>(job.z, begin + at);
          x[u] = maybe<N>(job.x, begin + at);
        }
      }
#pragma unroll
      for (int u = 0; u < kAtOnce; u++) {
        const int at = first + u * lane.width * N;
        if (at + N <= size) step<N>(begin + at, g[u], z[u], x[u], sums);
      }
    }
    if constexpr (N > 1)
      for (int rest = size - size % N + lane.id; rest < size;
           rest += lane.width) {
        const int64_t at = begin + rest;
        step<1>(at, load<1>(gy + at), maybe<1>(job.z, at), maybe<1>(job.x, at),
                sums);
      }
  }

  // y = x there
  __device__ void copy(int64_t begin, int size, const Lane& lane) const {
    const int64_t end = begin + size;
    for (int64_t at = begin + lane.id; at < end; at += lane.width) {
      if (job.gx)
        static_cast<X*>(job.gx)[at] = static_cast<const X*>(job.gy)[at];
      narrow(Acc<X>(0), static_cast<X*>(job.gz)[at]);
    }
  }
};

// `parts` is [cells, kParts] or, by block, [blocks, kParts]; or null.
template <class Op>
__global__ void __launch_bounds__(kThreads, Op::kBlocks)
    elements_kernel(const Op op, const Cells cells, const Segments segments,
                    double* parts, bool by_block) {
  using A = typename Op::A;
  constexpr int W = Op::kParts;
  const Lane lane(cells.shift);
  const int64_t cell = int64_t(blockIdx.x) * lane.slots() + lane.slot;
  A sums[W] = {};
  if (cell < cells.count()) {
    int64_t row = 0, place = cell;
    if (cells.per_row == 1) {
      row = cell;
      place = 0;
    } else if (cells.rows > 1) {
      row = cell / cells.per_row;
      place = cell % cells.per_row;
    }
    const int64_t column = place * cells.each;
    const int64_t begin = row * cells.channels + column;
    const int size = int(min(cells.each, cells.channels - column));
    if (is_active(segments, row))
      op.run(begin, size, lane, sums);
    else
      op.copy(begin, size, lane);
  }
  if (!parts) return;
  if (by_block) return block_sum(sums, parts);
#pragma unroll
  for (int k = 0; k < W; k++) {
    const double sum = lane.sum(double(sums[k]));
    if (lane.id == 0 && cell < cells.count()) parts[cell * W + k] = sum;
  }
}

}  // namespace
}  // namespace cuda
}  // namespace torch_picard
