// The kernels, compiled once for each instruction set.
#include "kernels.h"
#include "vec.h"

namespace torch_picard {
namespace ISA {

// Columns are worked on in tiles that stay in registers while all the
// entries of a row go by: up to 8 vectors, then 4, 2, 1. A rest narrower than
// a vector is done as a vector, too: one that overlaps the tile before it or,
// in a matrix narrower than a vector, reads into the next row.
constexpr int kTile = 8;

// Entries between a prefetch and its use. Rows come into the second level
// early and into the first shortly before; those of half precision are too
// short for a step of their own.
constexpr int kFar = 24, kNear = 6, kFarHalf = 32;

// A vector of row `row` at column c; in the last rows of a narrow matrix only
// as much of it as there is.
template <bool kNarrow, class T>
static inline Vec<Acc<T>> load_row(const T* p, int64_t row, int64_t c,
                                   int64_t rows, int64_t channels) {
  constexpr int N = Lanes<Acc<T>>::N;
  const T* at = p + row * channels + c;
  if constexpr (kNarrow) {
    if ((rows - row) * channels < N) {
      Vec<Acc<T>> v = {};
      for (int64_t k = 0; k < channels; k++) v[k] = widen(at[k]);
      return v;
    }
  }
  return load(at);
}

template <bool kNarrow, class A, class T>
static inline void store_row(Vec<A> v, T* p, int64_t channels, bool past) {
  if constexpr (kNarrow) {
    for (int64_t k = 0; k < channels; k++) narrow(v[k], p + k);
  } else if constexpr (sizeof(T) == sizeof(A)) {
    if (past)
      stream<A>(v, p);
    else
      store<A>(v, p);
  } else {
    store<A>(v, p);
  }
}

// Where in the results a tile goes.
struct Tile {
  int64_t row, column;
  int64_t length;  // entries of the row
  int vectors;
  int repeated;  // leading lanes that the tile before this one has counted
};

// Sums over the rows of a block.
template <class A>
struct Sums {
  Vec<A> square, norm;
};

// The last step: y = alpha*x + (1-alpha)*z and the sums of |z-x|^2 and |z|^2.
template <bool kNarrow, bool kPast, class X>
static inline void smooth_tile(const Propagate& job, const Tile& tile,
                               const Vec<Acc<X>>* z, Sums<Acc<X>>* stats) {
  using A = Acc<X>;
  using V = Vec<A>;
  constexpr int N = Lanes<A>::N;
  const int64_t channels = job.channels;
  const int64_t at = tile.row * channels + tile.column;
  const A alpha = A(job.alpha), rest = A(1.0 - job.alpha);
  const X* x = (const X*)job.x + at;
  X* y = (X*)job.y + at;
  const bool partial = kNarrow || tile.repeated > 0;
  V square = stats->square, norm = stats->norm;
  for (int k = 0; k < tile.vectors; k++) {
    V old = load_row<kNarrow>(x + k * N, 0, 0, 1, channels);
    V w = z[k], d = w - old;
    V out = alpha != 0 ? alpha * old + rest * w : w;
    store_row<kNarrow, A>(out, y + k * N, channels, kPast);
    if (partial) {
      for (int l = 0; l < N; l++)
        if (l < tile.repeated || (kNarrow && l >= channels)) d[l] = w[l] = 0;
    }
    square += d * d;
    norm += w * w;
  }
  stats->square = square;
  stats->norm = norm;
}

// Everything after the aggregation, on sums that are still in the cache:
// z = activation(sum + bias + inject), then smoothed.
template <class X, bool kNarrow>
__attribute__((noinline)) static void finish_tile(const Propagate& job,
                                                  const Tile& tile,
                                                  Vec<Acc<X>>* z,
                                                  Sums<Acc<X>>* stats) {
  using A = Acc<X>;
  constexpr int N = Lanes<A>::N;
  const int64_t channels = job.channels;
  const int64_t at = tile.row * channels + tile.column;
  const int vectors = tile.vectors;
  if (job.reduce == Reduce::mean && tile.length > 1) {
    const A length = A(tile.length);
    for (int k = 0; k < vectors; k++) z[k] = z[k] / length;
  }
  if (job.bias) {
    const A* bias = (const A*)job.bias + tile.column;
    for (int k = 0; k < vectors; k++)
      z[k] += load_row<kNarrow>(bias + k * N, 0, 0, 1, channels);
  }
  if (job.inject) {
    const X* inject = (const X*)job.inject + at;
    for (int k = 0; k < vectors; k++)
      z[k] += load_row<kNarrow>(inject + k * N, 0, 0, 1, channels);
  }
  if (job.activation == Activation::relu)
    for (int k = 0; k < vectors; k++)
      z[k] = select<A>(z[k] < 0, Vec<A>{}, z[k]);  // leaves NaN alone
  else if (job.activation == Activation::tanh)
#pragma GCC unroll 1
    for (int k = 0; k < vectors; k++) z[k] = tanh<A>(z[k]);
  if (job.z)
    for (int k = 0; k < vectors; k++)
      store_row<kNarrow, A>(z[k], (X*)job.z + at + k * N, channels, false);
  if (!job.x) {
    for (int k = 0; k < vectors; k++)
      store_row<kNarrow, A>(z[k], (X*)job.y + at + k * N, channels,
                            job.stream);
  } else if (job.stream) {
    smooth_tile<kNarrow, true, X>(job, tile, z, stats);
  } else {
    smooth_tile<kNarrow, false, X>(job, tile, z, stats);
  }
}

// Towards level 1 of the caches (kLocality 3) or level 2 (2).
template <int kLocality>
static inline void fetch(const void* p, size_t bytes) {
#pragma GCC unroll 8
  for (size_t b = 0; b < bytes; b += 64)
    __builtin_prefetch((const char*)p + b, 0, kLocality);
}

// Aggregates `kVectors` vectors of a row.
template <int kVectors, bool kMax, bool kNarrow, class I, class H>
static inline void gather_tile(const Propagate& job, const Tile& tile,
                               Vec<Acc<H>>* sums) {
  using A = Acc<H>;
  using V = Vec<A>;
  constexpr int N = Lanes<A>::N;
  const I* col = (const I*)job.col;
  const A* value = (const A*)job.value;
  const H* h = (const H*)job.h;
  const int64_t channels = job.channels, c = tile.column;
  const int64_t first = ((const I*)job.rowptr)[tile.row];
  const int64_t end = first + tile.length;
  const int64_t last = job.entries - 1;
  const auto source = [&](int64_t e) {
    return h + int64_t(col[e < last ? e : last]) * channels + c;
  };

  // Two bfloat16 of a word widen with one operation each if the even and the
  // odd columns are summed apart.
  constexpr bool kPaired = __is_same(H, BF16) && kVectors > 1 && !kMax;

  V acc[kVectors];
  Mask<A> from[kVectors];
#pragma GCC unroll 8
  for (int k = 0; k < kVectors; k++) {
    acc[k] = V{};
    if constexpr (kMax) from[k] = Mask<A>{} - 1;
  }
  for (int64_t e = first; e < end; e++) {
    if constexpr (sizeof(H) == 2) {
      fetch<2>(source(e + kFarHalf), sizeof(H) * N * kVectors);
    } else {
      fetch<2>(source(e + kFar), sizeof(H) * N * kVectors);
      fetch<3>(source(e + kNear), sizeof(H) * N * kVectors);
    }
    const int64_t j = col[e];
    const A v = value ? value[e] : A(1);
    if constexpr (kPaired) {
#pragma GCC unroll 8
      for (int k = 0; k < kVectors; k += 2) {
        typename Lanes<A>::U pair;
        std::memcpy(&pair, h + j * channels + c + k * N, sizeof pair);
        acc[k] += v * (V)(pair << 16);
        acc[k + 1] += v * (V)(pair & 0xffff0000u);
      }
      continue;
    }
#pragma GCC unroll 8
    for (int k = 0; k < kVectors; k++) {
      V m = load_row<kNarrow>(h, j, c + k * N, job.sources, channels);
      if constexpr (kMax) {
        m = v * m;
        Mask<A> larger = (e == first) ? (m == m) | (m != m)
                                      : (m > acc[k]) | (m != m);
        larger &= acc[k] == acc[k];  // the first NaN stays
        acc[k] = select<A>(larger, m, acc[k]);
        from[k] = (larger & (Mask<A>{} + typename Lanes<A>::Int(e))) |
                  (~larger & from[k]);
      } else {
        acc[k] += v * m;
      }
    }
  }
  if constexpr (kPaired) {
    for (int k = 0; k < kVectors; k += 2) {
      A* out = (A*)(sums + k);
      for (int l = 0; l < N; l++) {
        out[2 * l] = acc[k][l];
        out[2 * l + 1] = acc[k + 1][l];
      }
    }
    return;
  }
#pragma GCC unroll 8
  for (int k = 0; k < kVectors; k++) sums[k] = acc[k];
  if constexpr (kMax)
    if (job.arg)
      for (int k = 0; k < kVectors; k++)
        for (int l = 0; l < (kNarrow ? channels : N); l++)
          job.arg[tile.row * channels + c + k * N + l] = int32_t(from[k][l]);
}

template <bool kMax, class I, class H>
static void propagate_rows(const Propagate& job, int64_t begin, int64_t end,
                           void (*finish)(const Propagate&, const Tile&,
                                          Vec<Acc<H>>*, Sums<Acc<H>>*)) {
  constexpr int N = Lanes<Acc<H>>::N;
  const I* rowptr = (const I*)job.rowptr;
  const int64_t whole = job.channels / N * N;
  const int rest = int(job.channels - whole);
  Vec<Acc<H>> sums[kTile];
  Sums<Acc<H>> stats = {};
  for (int64_t i = begin; i < end; i++) {
    Tile tile{i, 0, int64_t(rowptr[i + 1] - rowptr[i]), 1, 0};
    if (whole == 0) {
      gather_tile<1, kMax, true, I, H>(job, tile, sums);
      finish(job, tile, sums, &stats);
      tile.column = job.channels;
    }
    while (tile.column < job.channels) {
      const int64_t left = (whole - tile.column) / N;
      if (left >= 8) {
        tile.vectors = 8;
        gather_tile<8, kMax, false, I, H>(job, tile, sums);
      } else if (left >= 4) {
        tile.vectors = 4;
        gather_tile<4, kMax, false, I, H>(job, tile, sums);
      } else if (left >= 2) {
        tile.vectors = 2;
        gather_tile<2, kMax, false, I, H>(job, tile, sums);
      } else {
        tile.vectors = 1;
        if (left == 0) {
          tile.column = job.channels - N;
          tile.repeated = N - rest;
        }
        gather_tile<1, kMax, false, I, H>(job, tile, sums);
      }
      finish(job, tile, sums, &stats);
      tile.column += tile.vectors * N;
    }
    if (job.stats && ((i + 1) % job.block == 0 || i + 1 == end)) {
      double* out = job.stats + i / job.block * 2;
      out[0] = total<Acc<H>>(stats.square);
      out[1] = total<Acc<H>>(stats.norm);
      stats.square = stats.norm = Vec<Acc<H>>{};
    }
  }
  if (job.stream) end_of_stream();
}

template <class H, class X>
static void propagate_typed(const Propagate& job, int64_t begin, int64_t end) {
  const bool narrow = job.channels < Lanes<Acc<H>>::N;
  auto finish = narrow ? finish_tile<X, true> : finish_tile<X, false>;
  const bool max = job.reduce == Reduce::max;
  auto rows = job.wide ? (max ? propagate_rows<true, int64_t, H>
                              : propagate_rows<false, int64_t, H>)
                       : (max ? propagate_rows<true, int32_t, H>
                              : propagate_rows<false, int32_t, H>);
  rows(job, begin, end, finish);
}

// Calls `f` with the two element types; half precision may meet float.
#define TORCH_PICARD_TYPES(message, state, f, ...)                       \
  switch (message) {                                                     \
    case Dtype::f64:                                                     \
      return f<double, double>(__VA_ARGS__);                             \
    case Dtype::f32:                                                     \
      return f<float, float>(__VA_ARGS__);                               \
    case Dtype::bf16:                                                    \
      if (state == Dtype::f32) return f<BF16, float>(__VA_ARGS__);       \
      return f<BF16, BF16>(__VA_ARGS__);                                 \
    case Dtype::f16:                                                     \
      if (state == Dtype::f32) return f<F16, float>(__VA_ARGS__);        \
      return f<F16, F16>(__VA_ARGS__);                                   \
  }

static void propagate(const Propagate& job, int64_t begin, int64_t end) {
  TORCH_PICARD_TYPES(job.message, job.state, propagate_typed, job, begin, end)
}

// -- elementwise ------------------------------------------------------------

// Calls f(at, v) for vectors of a row, then for what is left of it, element
// by element (N = 1 in the sense of `one`).
template <class T, class, class F, class G>
static inline void over_row(int64_t channels, F vector, G one) {
  constexpr int N = Lanes<Acc<T>>::N;
  int64_t c = 0;
  for (; c + N <= channels; c += N) vector(c);
  for (; c < channels; c++) one(c);
}

template <class X, class>
static void update_rows(const Update& job, int64_t begin, int64_t end) {
  using A = Acc<X>;
  using V = Vec<A>;
  const A alpha = A(job.alpha), rest = A(1.0 - job.alpha);
  for (int64_t i = begin; i < end; i++) {
    const X* x = (const X*)job.x + i * job.channels;
    const X* z = (const X*)job.z + i * job.channels;
    X* y = (X*)job.y + i * job.channels;
    V square = {}, norm = {};
    double rest_square = 0, rest_norm = 0;
    over_row<X, void>(
        job.channels,
        [&](int64_t c) {
          V a = load(x + c), b = load(z + c), d = b - a;
          square += d * d;
          norm += b * b;
          V out = alpha != 0 ? alpha * a + rest * b : b;
          store_row<false, A>(out, y + c, job.channels, job.stream);
        },
        [&](int64_t c) {
          A a = widen(x[c]), b = widen(z[c]), d = b - a;
          rest_square += d * d;
          rest_norm += b * b;
          narrow(alpha != 0 ? alpha * a + rest * b : b, y + c);
        });
    if (job.stats) {
      job.stats[2 * i] = total<A>(square) + rest_square;
      job.stats[2 * i + 1] = total<A>(norm) + rest_norm;
    }
  }
  if (job.stream) end_of_stream();
}

static void update(const Update& job, int64_t begin, int64_t end) {
  TORCH_PICARD_TYPES(job.state, job.state, update_rows, job, begin, end)
}

template <class X, class>
static void update_backward_rows(const UpdateBackward& job, int64_t begin,
                                 int64_t end) {
  using A = Acc<X>;
  using V = Vec<A>;
  const A alpha = A(job.alpha), rest = A(1.0 - job.alpha);
  const bool relu = job.activation == Activation::relu;
  const bool tanh = job.activation == Activation::tanh;
  for (int64_t i = begin; i < end; i++) {
    const int64_t row = i * job.channels;
    const X* gy = (const X*)job.gy + row;
    const X* z = job.z ? (const X*)job.z + row : nullptr;
    const X* x = job.x ? (const X*)job.x + row : nullptr;
    X* gx = job.gx ? (X*)job.gx + row : nullptr;
    X* gz = (X*)job.gz + row;
    double galpha = 0;
    over_row<X, void>(
        job.channels,
        [&](int64_t c) {
          V g = load(gy + c), slope = rest * g;
          if (relu) {
            V out = load(z + c);
            slope = select<A>((out > 0) | (out != out), slope, V{});
          }
          if (tanh) {
            V out = load(z + c);
            slope = slope * (1 - out * out);
          }
          if (gx) store<A>(alpha * g, gx + c);
          store<A>(slope, gz + c);
          if (x) galpha += total<A>(g * (load(x + c) - load(z + c)));
        },
        [&](int64_t c) {
          A g = widen(gy[c]), slope = rest * g;
          if (relu && widen(z[c]) <= 0) slope = 0;
          if (tanh) slope *= 1 - widen(z[c]) * widen(z[c]);
          if (gx) narrow(alpha * g, gx + c);
          narrow(slope, gz + c);
          if (x) galpha += g * (widen(x[c]) - widen(z[c]));
        });
    if (job.galpha) job.galpha[i] = galpha;
  }
}

static void update_backward(const UpdateBackward& job, int64_t begin,
                            int64_t end) {
  TORCH_PICARD_TYPES(job.state, job.state, update_backward_rows, job, begin,
                     end)
}

// -- gradients of the aggregation --------------------------------------------

template <class I, class H, class X>
static void sampled_rows(const Sampled& job, int64_t begin, int64_t end) {
  using A = Acc<H>;
  using V = Vec<A>;
  const I* rowptr = (const I*)job.rowptr;
  const I* col = (const I*)job.col;
  const H* h = (const H*)job.h;
  const int64_t channels = job.channels;
  A* out = (A*)job.out;
  for (int64_t i = begin; i < end; i++) {
    const X* g = (const X*)job.g + i * channels;
    const int32_t* arg = job.arg ? job.arg + i * channels : nullptr;
    const A length = A(rowptr[i + 1] - rowptr[i]);
    for (int64_t e = rowptr[i]; e < rowptr[i + 1]; e++) {
      const H* source = h + int64_t(col[e]) * channels;
      A sum = 0;
      if (arg) {
        for (int64_t c = 0; c < channels; c++)
          if (arg[c] == e) sum += widen(g[c]) * widen(source[c]);
      } else {
        V acc = {};
        over_row<H, void>(
            channels, [&](int64_t c) { acc += load(g + c) * load(source + c); },
            [&](int64_t c) { sum += widen(g[c]) * widen(source[c]); });
        sum += total<A>(acc);
      }
      out[e] = job.reduce == Reduce::mean ? sum / length : sum;
    }
  }
}

template <class H, class X>
static void sampled_typed(const Sampled& job, int64_t begin, int64_t end) {
  if (job.wide)
    sampled_rows<int64_t, H, X>(job, begin, end);
  else
    sampled_rows<int32_t, H, X>(job, begin, end);
}

static void sampled(const Sampled& job, int64_t begin, int64_t end) {
  TORCH_PICARD_TYPES(job.message, job.state, sampled_typed, job, begin, end)
}

template <class I, class H, class X>
static void max_backward_rows(const MaxBackward& job, int64_t begin,
                              int64_t end) {
  using A = Acc<H>;
  using V = Vec<A>;
  constexpr int N = Lanes<A>::N;
  const I* colptr = (const I*)job.colptr;
  const I* row = (const I*)job.row;
  const I* perm = (const I*)job.perm;
  const A* value = (const A*)job.value;
  const int64_t channels = job.channels;
  for (int64_t j = begin; j < end; j++) {
    H* out = (H*)job.out + j * channels;
    for (int64_t c = 0; c < channels; c += N) {
      const int n = int(channels - c < N ? channels - c : N);
      V sum = {};
      for (int64_t p = colptr[j]; p < colptr[j + 1]; p++) {
        const X* g = (const X*)job.g + int64_t(row[p]) * channels + c;
        const int32_t* arg = job.arg + int64_t(row[p]) * channels + c;
        const A v = value ? value[p] : A(1);
        for (int k = 0; k < n; k++)
          if (arg[k] == perm[p]) sum[k] += v * widen(g[k]);
      }
      for (int k = 0; k < n; k++) narrow(sum[k], out + c + k);
    }
  }
}

template <class H, class X>
static void max_backward_typed(const MaxBackward& job, int64_t begin,
                               int64_t end) {
  if (job.wide)
    max_backward_rows<int64_t, H, X>(job, begin, end);
  else
    max_backward_rows<int32_t, H, X>(job, begin, end);
}

static void max_backward(const MaxBackward& job, int64_t begin, int64_t end) {
  TORCH_PICARD_TYPES(job.message, job.state, max_backward_typed, job, begin,
                     end)
}

}  // namespace ISA

#define TORCH_PICARD_PASTE(a, b) a##b
#define TORCH_PICARD_TABLE(isa) TORCH_PICARD_PASTE(isa, _kernels)
#define TORCH_PICARD_TEXT(isa) #isa
#define TORCH_PICARD_NAME(isa) TORCH_PICARD_TEXT(isa)

extern const Kernels TORCH_PICARD_TABLE(ISA) = {
    TORCH_PICARD_NAME(ISA), ISA::propagate,   ISA::update,
    ISA::update_backward,   ISA::sampled,     ISA::max_backward,
};

}  // namespace torch_picard
