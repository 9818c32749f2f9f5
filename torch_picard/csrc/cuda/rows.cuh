// What goes over the rows of a graph: aggregation and its gradients.
#pragma once

#include "walk.cuh"

namespace torch_picard {
namespace cuda {
namespace {

// -- aggregation --------------------------------------------------------------

// Sums of v*h_j, or their maxima and the entries these came from, and all
// that smoothed_propagate does with them.
template <class H, int kN, bool kMax_>
struct Aggregate {
  using A = Acc<H>;
  static constexpr int N = kN;
  static constexpr bool kMax = kMax_;
  static constexpr int kBlocks =
      sizeof(A) == 8 || N > 4 || (kMax && N > 1) ? 3 : 4;
  Propagate job;
  A alpha = A(job.alpha), rest = A(1.0 - job.alpha);

  // The columns from c of a slice. `from` counts the entries of the row.
  __device__ void gather(const Graph& graph, const Lane& lane,
                         const Walk& walk, int c, A (&acc)[N],
                         int (&from)[N]) const {
    const int64_t first = walk.span.first + walk.begin;
    const A* value = static_cast<const A*>(job.value);
    const char* h = static_cast<const char*>(job.h) + c * sizeof(H);
    const uint32_t stride = uint32_t(job.channels * sizeof(H));
    const bool inside = c < job.channels;
    for (int base = 0; base < walk.most; base += lane.width) {
      uint32_t own = kNone;
      A weight = 1;
      if (base + lane.id < walk.length) {
        own = graph.source(first + base + lane.id);
        if (value) weight = __ldg(value + first + base + lane.id);
      }
      const int count = min(lane.width, walk.most - base);
#pragma unroll 1
      for (int k = 0; k < count; k += kUnroll) {
        Pack<H, N> m[kUnroll];
        A v[kUnroll];
        bool on[kUnroll];
#pragma unroll
        for (int u = 0; u < kUnroll; u++) {
          const uint32_t j = lane.read(own, k + u);
          v[u] = value ? lane.read(weight, k + u) : A(1);
          on[u] = inside && j != kNone;
          if (on[u])
            m[u] = load_constant<N>(
                reinterpret_cast<const H*>(h + uint64_t(j) * stride));
        }
#pragma unroll
        for (int u = 0; u < kUnroll; u++)
          if (on[u]) {
#pragma unroll
            for (int n = 0; n < N; n++) {
              if constexpr (kMax)
                take(v[u] * m[u][n], int(walk.begin) + base + k + u, acc[n],
                     from[n]);
              else
                acc[n] += v[u] * m[u][n];
            }
          }
      }
    }
  }

  // The first maximum stays, and the first NaN.
  __device__ static void take(A m, int entry, A& acc, int& from) {
    if (from < 0 || ((m > acc || m != m) && acc == acc)) {
      acc = m;
      from = entry;
    }
  }

  __device__ static void merge(A m, int entry, A& acc, int& from) {
    if (entry >= 0) take(m, entry, acc, from);
  }

  __device__ void finish(int64_t row, const Span& span, int c, A (&z)[N],
                         const int (&from)[N], A (&sums)[kSums]) const {
    if constexpr (kMax)
      if (job.arg) {
        int32_t entry[N];
#pragma unroll
        for (int n = 0; n < N; n++)
          entry[n] = from[n] < 0 ? -1 : int32_t(span.first + from[n]);
        store<N>(entry, job.arg + row * job.channels + c);
      }
    if constexpr (std::is_same_v<H, A>)
      finish_as<H>(row, span.length, c, z, sums);
    else if (job.state == job.message)
      finish_as<H>(row, span.length, c, z, sums);
    else
      finish_as<A>(row, span.length, c, z, sums);
  }

  // z = activation(sum + bias + inject), y = alpha*x + (1-alpha)*z.
  template <class X>
  __device__ void finish_as(int64_t row, int64_t length, int c, A (&z)[N],
                            A (&sums)[kSums]) const {
    const int64_t at = row * job.channels + c;
    if (job.reduce == Reduce::mean && length > 1) {
#pragma unroll
      for (int n = 0; n < N; n++) z[n] /= A(length);
    }
    if (job.bias) {
      const auto bias = load_constant<N>(static_cast<const A*>(job.bias) + c);
#pragma unroll
      for (int n = 0; n < N; n++) z[n] += bias[n];
    }
    if (job.inject) {
      const auto more = load_once<N>(static_cast<const X*>(job.inject) + at);
#pragma unroll
      for (int n = 0; n < N; n++) z[n] += more[n];
    }
    if (job.activation == Activation::relu) {
#pragma unroll
      for (int n = 0; n < N; n++) z[n] = z[n] < 0 ? A(0) : z[n];  // or NaN
    } else if (job.activation == Activation::tanh) {
#pragma unroll
      for (int n = 0; n < N; n++) z[n] = tanh(z[n]);
    }
    if (job.z) store<N>(z, static_cast<X*>(job.z) + at);
    if (job.x) {
      const auto x = load_once<N>(static_cast<const X*>(job.x) + at);
#pragma unroll
      for (int n = 0; n < N; n++) {
        const A old = x[n], d = z[n] - old;
        sums[0] += d * d;
        sums[1] += z[n] * z[n];
        if (alpha != 0) z[n] = alpha * old + rest * z[n];
      }
    }
    if (job.y) store<N>(z, static_cast<X*>(job.y) + at);
  }

  // A row that is not active.
  __device__ void copy(int64_t row, const Lane& lane) const {
    if (std::is_same_v<H, A> || job.state == job.message)
      copy_as<H>(row, lane);
    else
      copy_as<A>(row, lane);
  }
  template <class X>
  __device__ void copy_as(int64_t row, const Lane& lane) const {
    for (int c = lane.id * N; c < job.channels; c += lane.width * N) {
      const int64_t at = row * job.channels + c;
      const auto x = load<N>(static_cast<const X*>(job.x) + at);
      store<N>(x, static_cast<X*>(job.y) + at);
      if (job.z) store<N>(x, static_cast<X*>(job.z) + at);
      if (kMax && job.arg) {
        int32_t none[N];
#pragma unroll
        for (int n = 0; n < N; n++) none[n] = -1;
        store<N>(none, job.arg + at);
      }
    }
  }
};

// The gradient of a maximum: only from where it was taken.
template <class G, int kN>
struct Picked {
  using A = Acc<G>;
  static constexpr int N = kN, kUnroll = N > 4 ? 2 : cuda::kUnroll;
  static constexpr bool kMax = false;
  static constexpr int kBlocks = N == 1 ? 3 : 2;
  MaxBackward job;

  __device__ void gather(const Graph& graph, const Lane& lane,
                         const Walk& walk, int c, A (&acc)[N],
                         int (&)[N]) const {
    const int64_t first = walk.span.first + walk.begin;
    const A* value = static_cast<const A*>(job.value);
    const G* g = static_cast<const G*>(job.g) + c;
    const int32_t* arg = job.arg + c;
    const bool inside = c < job.channels;
    for (int base = 0; base < walk.most; base += lane.width) {
      uint32_t own = kNone;
      int entry = -1;
      A weight = 1;
      if (base + lane.id < walk.length) {
        const int64_t place = first + base + lane.id;
        own = graph.source(place);
        entry = int(graph.at(job.perm, place));
        if (value) weight = __ldg(value + place);
      }
      const int count = min(lane.width, walk.most - base);
#pragma unroll 1
      for (int k = 0; k < count; k += kUnroll) {
        Pack<int32_t, N> taken[kUnroll];
        Pack<G, N> m[kUnroll];
        uint32_t row[kUnroll];
        int wanted[kUnroll];
        A v[kUnroll];
        unsigned hits[kUnroll];  // a bit a column
#pragma unroll
        for (int u = 0; u < kUnroll; u++) {
          row[u] = lane.read(own, k + u);
          wanted[u] = lane.read(entry, k + u);
          v[u] = value ? lane.read(weight, k + u) : A(1);
          hits[u] = inside && row[u] != kNone;
          if (hits[u]) taken[u] = load_constant<N>(arg + row[u] * job.channels);
        }
#pragma unroll
        for (int u = 0; u < kUnroll; u++)
          if (hits[u]) {
            hits[u] = 0;
#pragma unroll
            for (int n = 0; n < N; n++)
              hits[u] |= unsigned(taken[u][n] == wanted[u]) << n;
            if (hits[u]) m[u] = load_constant<N>(g + row[u] * job.channels);
          }
#pragma unroll
        for (int u = 0; u < kUnroll; u++)
          if (hits[u]) {
#pragma unroll
            for (int n = 0; n < N; n++)
              if (hits[u] >> n & 1) acc[n] += v[u] * m[u][n];
          }
      }
    }
  }

  __device__ void finish(int64_t row, const Span&, int c, A (&out)[N],
                         const int (&)[N], A (&)[kSums]) const {
    const int64_t at = row * job.channels + c;
    if constexpr (std::is_same_v<G, float>) {
      if (job.message == Dtype::bf16)
        return store<N>(out, static_cast<BF16*>(job.out) + at);
      if (job.message == Dtype::f16)
        return store<N>(out, static_cast<F16*>(job.out) + at);
    }
    store<N>(out, static_cast<G*>(job.out) + at);
  }

  __device__ void copy(int64_t, const Lane&) const {}
};

// Slot 0 gets what all slots have of a row, in the order of its entries.
template <class Op>
__device__ void gather_slices(const Lane& lane,
                              typename Op::A (&acc)[Op::N],
                              int (&from)[Op::N]) {
  constexpr int N = Op::N;
  __shared__ typename Op::A sums[N][kThreads];
  __shared__ int entries[Op::kMax ? N : 1][kThreads];
  __syncthreads();  // all have read what was there before
#pragma unroll
  for (int n = 0; n < N; n++) {
    sums[n][threadIdx.x] = acc[n];
    if constexpr (Op::kMax) entries[n][threadIdx.x] = from[n];
  }
  __syncthreads();
  if (lane.slot > 0) return;
  for (int other = lane.id + lane.width; other < kThreads; other += lane.width)
#pragma unroll
    for (int n = 0; n < N; n++)
      if constexpr (Op::kMax)
        Op::merge(sums[n][other], entries[n][other], acc[n], from[n]);
      else
        acc[n] += sums[n][other];
}

// `parts` is [rows, 2], or [blocks, 2] if there is only one segment.
template <class Op>
__global__ void __launch_bounds__(kThreads, Op::kBlocks)
    rows_kernel(const Op op, const Graph graph, const Segments segments,
                double* parts) {
  using A = typename Op::A;
  constexpr int N = Op::N;
  const Lane lane(graph.shift);
  const int channels = int(op.job.channels);
  const bool by_row = parts && segments.ptr;
  A sums[kSums] = {0, 0};
  for (Walk walk(graph); walk.next(graph, segments, lane);) {
    const bool finishes = walk.finishes(graph, lane);
    if (walk.inside && !walk.active) op.copy(walk.row, lane);
    for (int tile = 0; tile < channels; tile += lane.width * N) {
      const int c = tile + lane.id * N;
      A acc[N];
      int from[N];
#pragma unroll
      for (int n = 0; n < N; n++) acc[n] = 0, from[n] = -1;
      op.gather(graph, lane, walk, c, acc, from);
      if (walk.whole) gather_slices<Op>(lane, acc, from);
      if (finishes && c < channels)
        op.finish(walk.row, walk.span, c, acc, from, sums);
    }
    if (by_row)
#pragma unroll
      for (int k = 0; k < kSums; k++) {
        const double sum = lane.sum(double(sums[k]));
        if (lane.id == 0 && (finishes || (walk.inside && !walk.active)))
          parts[walk.row * kSums + k] = sum;
        sums[k] = 0;
      }
  }
  if (parts && !by_row) block_sum(sums, parts);
}

// -- the gradient of value ----------------------------------------------------

template <class H, int N>
struct Dot {
  using A = Acc<H>;
  Sampled job;

  template <class G>
  __device__ void run(const Graph& graph, const Lane& lane,
                      const Walk& walk) const {
    const int64_t first = walk.span.first + walk.begin;
    const int64_t offset = walk.row * job.channels;
    const G* g = static_cast<const G*>(job.g) + offset;
    const int32_t* arg = job.arg ? job.arg + offset : nullptr;
    const char* h = static_cast<const char*>(job.h);
    const uint32_t stride = uint32_t(job.channels * sizeof(H));
    for (int base = 0; base < walk.most; base += lane.width) {
      uint32_t own = kNone;
      if (base + lane.id < walk.length)
        own = graph.source(first + base + lane.id);
      const int count = min(lane.width, walk.most - base);
#pragma unroll 1
      for (int k = 0; k < count; k += kUnroll) {
        uint32_t j[kUnroll];
        A dot[kUnroll];
#pragma unroll
        for (int u = 0; u < kUnroll; u++) {
          j[u] = lane.read(own, k + u);
          dot[u] = 0;
        }
        if (base + k < walk.length)
          for (int c = lane.id * N; c < job.channels; c += lane.width * N) {
            Pack<H, N> m[kUnroll];
#pragma unroll
            for (int u = 0; u < kUnroll; u++)
              if (j[u] != kNone)
                m[u] = load_constant<N>(reinterpret_cast<const H*>(
                           h + uint64_t(j[u]) * stride) + c);
            const auto left = load_constant<N>(g + c);
            Pack<int32_t, N> taken;
            if (arg) taken = load_constant<N>(arg + c);
#pragma unroll
            for (int u = 0; u < kUnroll; u++)
              if (j[u] != kNone) {
                const int64_t entry = first + base + k + u;
#pragma unroll
                for (int n = 0; n < N; n++)
                  if (!arg || taken[n] == entry) dot[u] += left[n] * m[u][n];
              }
          }
        A out = 0;
#pragma unroll
        for (int u = 0; u < kUnroll; u++) {
          const A sum = lane.sum(dot[u]);
          if (lane.id == u) out = sum;
        }
        const int place = base + k + lane.id;
        if (lane.id < kUnroll && place < walk.length)
          static_cast<A*>(job.out)[first + place] =
              job.reduce == Reduce::mean ? out / A(walk.span.length) : out;
      }
    }
  }

  __device__ void operator()(const Graph& graph, const Lane& lane,
                             const Walk& walk) const {
    if (std::is_same_v<H, A> || job.state == job.message)
      run<H>(graph, lane, walk);
    else
      run<A>(graph, lane, walk);
  }
};

template <class H, int N>
__global__ void __launch_bounds__(kThreads, N > 1 ? 2 : 3)
    sampled_kernel(const Dot<H, N> dot, const Graph graph) {
  const Lane lane(graph.shift);
  for (Walk walk(graph); walk.next(graph, {}, lane);) dot(graph, lane, walk);
}

}  // namespace
}  // namespace cuda
}  // namespace torch_picard
