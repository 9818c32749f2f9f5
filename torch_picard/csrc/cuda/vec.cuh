// Elements, vectors of 16 bytes, and the lanes that move them.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "kernels.h"

namespace torch_picard {
namespace cuda {
namespace {

constexpr int kThreads = 256;  // of a block
constexpr int kWarps = kThreads / 32;
constexpr int kUnroll = 4;        // loads in flight at a time
constexpr unsigned kAll = ~0u;    // lanes of a warp

// -- elements -----------------------------------------------------------------

using F16 = __half;
using BF16 = __nv_bfloat16;

template <class T>
using Acc = std::conditional_t<std::is_same_v<T, double>, double, float>;

__device__ inline float widen(float a) { return a; }
__device__ inline double widen(double a) { return a; }
__device__ inline int32_t widen(int32_t a) { return a; }
__device__ inline float widen(F16 a) { return __half2float(a); }
__device__ inline float widen(BF16 a) { return __bfloat162float(a); }

__device__ inline void narrow(float a, float& t) { t = a; }
__device__ inline void narrow(double a, double& t) { t = a; }
__device__ inline void narrow(int32_t a, int32_t& t) { t = a; }
__device__ inline void narrow(float a, F16& t) { t = __float2half_rn(a); }
__device__ inline void narrow(float a, BF16& t) { t = __float2bfloat16_rn(a); }

template <int kBytes>
using Word = std::conditional_t<
    kBytes % 16 == 0, uint4,
    std::conditional_t<
        kBytes == 8, uint2,
        std::conditional_t<kBytes == 4, unsigned, unsigned short>>>;

// N elements side by side, moved in words of up to 16 bytes. Where N > 1 they
// must lie at a multiple of 16 bytes (of 8, if they are no longer than that).
template <class T, int N>
union Pack {
  using W = Word<N * sizeof(T)>;
  static constexpr int kWords = N * sizeof(T) / sizeof(W);
  W word[kWords];
  T at[N];

  __device__ Pack() {}
  __device__ auto operator[](int n) const { return widen(at[n]); }
};

template <int N, class T>
__device__ inline Pack<T, N> load(const T* p) {
  using P = Pack<T, N>;
  P pack;
#pragma unroll
  for (int k = 0; k < P::kWords; k++)
    pack.word[k] = reinterpret_cast<const typename P::W*>(p)[k];
  return pack;
}

// Of memory that this kernel does not write.
template <int N, class T>
__device__ inline Pack<T, N> load_constant(const T* p) {
  using P = Pack<T, N>;
  P pack;
#pragma unroll
  for (int k = 0; k < P::kWords; k++)
    pack.word[k] = __ldg(reinterpret_cast<const typename P::W*>(p) + k);
  return pack;
}

// Of memory that need not stay in the cache, unlike what is gathered.
template <int N, class T>
__device__ inline Pack<T, N> load_once(const T* p) {
  using P = Pack<T, N>;
  P pack;
#pragma unroll
  for (int k = 0; k < P::kWords; k++)
    pack.word[k] = __ldcs(reinterpret_cast<const typename P::W*>(p) + k);
  return pack;
}

template <int N, class T>
__device__ inline void store(const Pack<T, N>& pack, T* p) {
  using P = Pack<T, N>;
#pragma unroll
  for (int k = 0; k < P::kWords; k++)
    reinterpret_cast<typename P::W*>(p)[k] = pack.word[k];
}

template <int N, class A, class T>
__device__ inline void store(const A (&v)[N], T* p) {
  Pack<T, N> pack;
#pragma unroll
  for (int n = 0; n < N; n++) narrow(v[n], pack.at[n]);
  store<N, T>(pack, p);
}

// -- lanes --------------------------------------------------------------------

// A block is cut into slots of 4 to 32 lanes; each slot has a row at a time,
// each lane of it N columns at a time.
struct Lane {
  int shift, width, id, slot;

  __device__ explicit Lane(int log2_width)
      : shift(log2_width),
        width(1 << log2_width),
        id(threadIdx.x & (width - 1)),
        slot(threadIdx.x >> shift) {}

  __device__ int slots() const { return kThreads >> shift; }

  // What lane k of this slot has. All lanes of the warp must call.
  template <class T>
  __device__ T read(T v, int k) const {
    return __shfl_sync(kAll, v, k, width);
  }

  template <class T>
  __device__ T sum(T v) const {
    for (int far = width / 2; far > 0; far /= 2)
      v += __shfl_xor_sync(kAll, v, far);
    return v;
  }

  // The largest of the warp, from one number a slot.
  __device__ int most(int v) const {
    for (int far = width; far < 32; far *= 2)
      v = max(v, __shfl_xor_sync(kAll, v, far));
    return v;
  }
};

int lanes_for(int64_t vectors) {
  int shift = 2;
  while (shift < 5 && (1 << shift) < vectors) shift++;
  return shift;
}

// Writes the sums over a block to its place in `out`. All threads must call.
template <int W, class A>
__device__ void block_sum(const A (&v)[W], double* out) {
  __shared__ double parts[32][W];
  const int warps = blockDim.x / 32;
#pragma unroll
  for (int k = 0; k < W; k++) {
    double sum = v[k];
    for (int far = 16; far > 0; far /= 2)
      sum += __shfl_xor_sync(kAll, sum, far);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32][k] = sum;
  }
  __syncthreads();
  if (threadIdx.x >= W) return;
  double sum = 0;
  for (int w = 0; w < warps; w++) sum += parts[w][threadIdx.x];
  out[int64_t(blockIdx.x) * W + threadIdx.x] = sum;
}

}  // namespace
}  // namespace cuda
}  // namespace torch_picard
