// Vectors of the widest registers that the file including this is compiled
// for, by the vector extension of GCC and Clang. Everything is in an inline
// namespace named after the instruction set: the linker must never take the
// AVX-512 version of a function for the others.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace torch_picard {
namespace ISA {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif

struct BF16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};

// Accumulation type A and its vectors; N is their length.
template <class A>
struct Lanes;
template <>
struct Lanes<float> {
  using Int = int32_t;
  static constexpr int N = kBytes / 4;
  typedef float V __attribute__((vector_size(kBytes)));
  typedef int32_t M __attribute__((vector_size(kBytes)));
  typedef uint32_t U __attribute__((vector_size(kBytes)));
  static constexpr float kRound = 12582912.f;  // 1.5 * 2^23
  static constexpr int kMantissa = 23, kBias = 127;
  static constexpr float kLn2High = 0.693145751953125f;
  static constexpr float kLn2Low = 1.42860682030941723212e-6f;
  static constexpr float kTanhIsOne = 10.f;
  static constexpr int kTerms = 7;
};
template <>
struct Lanes<double> {
  using Int = int64_t;
  static constexpr int N = kBytes / 8;
  typedef double V __attribute__((vector_size(kBytes)));
  typedef int64_t M __attribute__((vector_size(kBytes)));
  typedef uint64_t U __attribute__((vector_size(kBytes)));
  static constexpr double kRound = 6755399441055744.;  // 1.5 * 2^52
  static constexpr int kMantissa = 52, kBias = 1023;
  static constexpr double kLn2High = 0.693147180369123816490;
  static constexpr double kLn2Low = 1.90821492927058770002e-10;
  static constexpr double kTanhIsOne = 20.;
  static constexpr int kTerms = 14;
};
template <class A>
using Vec = typename Lanes<A>::V;
template <class A>
using Mask = typename Lanes<A>::M;

template <class T>
struct Traits {
  using A = float;
};
template <>
struct Traits<double> {
  using A = double;
};
template <class T>
using Acc = typename Traits<T>::A;

template <class To, class From>
static inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "a cast of bits");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// -- scalars ----------------------------------------------------------------

static inline float widen(float a) { return a; }
static inline double widen(double a) { return a; }
static inline float widen(BF16 a) {
  return bits_as<float>(uint32_t(a.bits) << 16);
}
// Shifted into place, a half is 2^-112 times the float; subnormals included.
static inline float widen(F16 a) {
  uint32_t magnitude = uint32_t(a.bits & 0x7fff) << 13;
  float f = bits_as<float>(magnitude) * bits_as<float>(0x77800000u);
  uint32_t bits = bits_as<uint32_t>(f);
  if ((a.bits & 0x7fff) >= 0x7c00) bits |= 0x7f800000u;
  return bits_as<float>(bits | uint32_t(a.bits & 0x8000) << 16);
}

static inline void narrow(float a, float* p) { *p = a; }
static inline void narrow(double a, double* p) { *p = a; }
static inline void narrow(float a, BF16* p) {  // to nearest, ties to even
  uint32_t u = bits_as<uint32_t>(a);
  bool nan = (u & 0x7fffffff) > 0x7f800000u;
  p->bits = nan ? 0x7fc0 : uint16_t((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
static inline void narrow(float a, F16* p) {
  uint32_t u = bits_as<uint32_t>(a), sign = u >> 16 & 0x8000;
  u &= 0x7fffffff;
  uint32_t half;
  if (u > 0x7f800000u) {
    half = 0x7e00;
  } else if (u >= 0x477ff000u) {  // 65520 and more round to infinity
    half = 0x7c00;
  } else if (u < 0x38800000u) {  // subnormal: the addition rounds
    half = bits_as<uint32_t>(bits_as<float>(u) + 0.5f) - 0x3f000000u;
  } else {
    half = (u - 0x38000000u + 0xfff + (u >> 13 & 1)) >> 13;
  }
  p->bits = uint16_t(sign | half);
}

// -- vectors ----------------------------------------------------------------

static inline Vec<float> load(const float* p) {
  Vec<float> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
static inline Vec<double> load(const double* p) {
  Vec<double> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
typedef uint16_t Shorts __attribute__((vector_size(kBytes / 2)));
static inline Lanes<float>::U load_bits(const void* p) {
  Shorts s;
  std::memcpy(&s, p, sizeof s);
  return __builtin_convertvector(s, Lanes<float>::U);
}
static inline Vec<float> load(const BF16* p) {
  return (Vec<float>)(load_bits(p) << 16);
}
static inline Vec<float> load(const F16* p) {
  Lanes<float>::U b = load_bits(p), magnitude = (b & 0x7fff) << 13;
  Vec<float> f = (Vec<float>)magnitude * bits_as<float>(0x77800000u);
  Lanes<float>::U special = (Lanes<float>::U)(magnitude >= (0x7c00u << 13));
  return (Vec<float>)((Lanes<float>::U)f | (special & 0x7f800000u) |
                      (b & 0x8000) << 16);
}

template <class A>
static inline Vec<A> select(Mask<A> m, Vec<A> a, Vec<A> b) {
  return (Vec<A>)(((Mask<A>)a & m) | ((Mask<A>)b & ~m));
}

template <class A, class T>
static inline void store(Vec<A> v, T* p) {
  if constexpr (sizeof(T) == sizeof(A)) {
    std::memcpy(p, &v, sizeof v);
  } else if constexpr (__is_same(T, BF16)) {
    auto u = (Lanes<float>::U)v;
    u = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    u = (Lanes<float>::U)select<float>(v == v, (Vec<float>)u,
                                       (Vec<float>)(u * 0 + 0x7fc0));
    Shorts s = __builtin_convertvector(u, Shorts);
    std::memcpy(p, &s, sizeof s);
  } else {
    for (int k = 0; k < Lanes<A>::N; k++) narrow(v[k], p + k);
  }
}

// Past the caches; p must be aligned to the vector.
template <class A>
static inline void stream(Vec<A> v, A* p) {
#if defined(__AVX512F__)
  _mm512_stream_si512((__m512i*)p, (__m512i)v);
#elif defined(__AVX__)
  _mm256_stream_si256((__m256i*)p, (__m256i)v);
#elif defined(__SSE2__)
  _mm_stream_si128((__m128i*)p, (__m128i)v);
#else
  std::memcpy(p, &v, sizeof v);
#endif
}
static inline void end_of_stream() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

template <class A>
static inline A total(Vec<A> v) {
  A part[Lanes<A>::N];
  std::memcpy(part, &v, sizeof v);
#pragma GCC unroll 8
  for (int half = Lanes<A>::N / 2; half > 0; half /= 2)
#pragma GCC unroll 8
    for (int k = 0; k < half; k++) part[k] += part[k + half];
  return part[0];
}

// tanh(a) = m/(m+2) with m = exp(2a) - 1 = 2^n p + (2^n - 1), where
// 2a = n ln 2 + r and p = exp(r) - 1 by its Taylor series: near 0 there is no
// cancellation. Within 4 units in the last place.
template <class A>
static inline Vec<A> tanh(Vec<A> x) {
  using L = Lanes<A>;
  using M = Mask<A>;
  Vec<A> a = select<A>(x < 0, -x, x);
  a = select<A>(a < L::kTanhIsOne, a, Vec<A>{} + L::kTanhIsOne) * 2;
  Vec<A> n = a * A(1.44269504088896340736) + L::kRound;
  n = n - L::kRound;
  Vec<A> r = a - n * L::kLn2High - n * L::kLn2Low;
  A coefficient[16] = {0, 1};
  for (int k = 2; k < 16; k++) coefficient[k] = coefficient[k - 1] / k;
  Vec<A> p = r * 0 + coefficient[L::kTerms];
#pragma GCC unroll 16
  for (int k = L::kTerms - 1; k > 0; k--) p = p * r + coefficient[k];
  p = p * r;
  M exponent = __builtin_convertvector(n, M) + L::kBias;
  Vec<A> scale = (Vec<A>)(exponent << L::kMantissa);
  Vec<A> m = scale * p + (scale - 1);
  Vec<A> t = m / (m + 2);
  t = select<A>(x < 0, -t, t);
  return select<A>(x == x, t, x);
}

}  // namespace ISA
}  // namespace torch_picard
