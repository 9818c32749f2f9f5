// The CPU side of the operators declared in torch_picard/ops/library.py: what
// the tensors must look like, and which rows are worked on.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdlib>
#include <cstring>

#include "checks.h"
#include "kernels.h"
#include "parallel.h"

namespace torch_picard {
namespace {

const Kernels& kernels() {
#if defined(__x86_64__)
  static const Kernels& best = [&]() -> const Kernels& {
    const char* wanted = std::getenv("TORCH_PICARD_ISA");
    const bool any = !wanted || !*wanted;
    __builtin_cpu_init();
    const bool avx512 = __builtin_cpu_supports("avx512f") &&
                        __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512vl");
    const bool avx2 =
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (avx512 && (any || !std::strcmp(wanted, "avx512")))
      return avx512_kernels;
    if (avx2 && (any || !std::strcmp(wanted, "avx2"))) return avx2_kernels;
    return baseline_kernels;
  }();
  return best;
#else
  return baseline_kernels;
#endif
}

// -- what comes in ------------------------------------------------------------

template <class T>
const T* read(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

struct Csr {
  const void* rowptr;
  const void* col;
  bool wide;
  int64_t rows, entries;

  int64_t start(int64_t i) const {
    return wide ? static_cast<const int64_t*>(rowptr)[i]
                : static_cast<const int32_t*>(rowptr)[i];
  }
};

template <class I>
int64_t defect_of(const I* rowptr, const I* col, int64_t rows, int64_t entries,
                  int64_t sources) {
  if (rowptr[0] != 0) return 1;
  if (rowptr[rows] != entries) return 2;
  std::atomic<bool> falls{false}, outside{false};
  parallel_rows(
      rows, [](int64_t i) { return i; },
      [&](int64_t begin, int64_t end) {
        bool bad = false;
        for (int64_t i = begin; i < end; i++) bad |= rowptr[i + 1] < rowptr[i];
        if (bad) falls = true;
      });
  if (falls) return 3;
  parallel_rows(
      entries, [](int64_t i) { return i; },
      [&](int64_t begin, int64_t end) {
        using U = std::make_unsigned_t<I>;  // a negative one is large
        U largest = 0;
        for (int64_t e = begin; e < end; e++)
          largest = std::max(largest, U(col[e]));
        if (begin < end && largest >= U(sources)) outside = true;
      });
  return outside ? 4 : 0;
}

Csr csr_of(const Tensor& rowptr, const Tensor& col) {
  const bool wide = is_wide(rowptr, "rowptr");
  STD_TORCH_CHECK(is_wide(col, "col") == wide,
                  "rowptr and col must have the same dtype");
  expect_offsets(rowptr);
  STD_TORCH_CHECK(rowptr.is_contiguous() && col.is_contiguous(),
                  "rowptr and col must be contiguous");
  return {rowptr.const_data_ptr(), col.const_data_ptr(), wide,
          rowptr.numel() - 1, col.numel()};
}

int64_t defect(const Csr& csr, int64_t sources) {
  if (csr.wide)
    return defect_of(static_cast<const int64_t*>(csr.rowptr),
                     static_cast<const int64_t*>(csr.col), csr.rows,
                     csr.entries, sources);
  return defect_of(static_cast<const int32_t*>(csr.rowptr),
                   static_cast<const int32_t*>(csr.col), csr.rows,
                   csr.entries, sources);
}

void check_indices(const Csr& csr, int64_t sources) {
  static const char* const kDefects[] = {
      "", "rowptr must start at 0", "rowptr must end at the length of col",
      "rowptr must not decrease", "col must be in [0, rows of h)"};
  const int64_t found = defect(csr, sources);
  STD_TORCH_CHECK(found == 0, kDefects[found]);
}

// 0, or which of the rules above is broken.
int64_t csr_defect(Tensor rowptr, Tensor col, int64_t sources) {
  return defect(csr_of(rowptr, col), sources);
}

// -- segments -----------------------------------------------------------------

// Rows that are one problem: all of them, or from one offset of ptr to the
// next. Those that are not active are left as they are.
struct Segments {
  const int64_t* ptr = nullptr;
  const bool* active = nullptr;
  int64_t rows = 0, size = 1;

  Segments(const MaybeTensor& offsets, const MaybeTensor& flags, int64_t n)
      : rows(n) {
    if (offsets) {
      size = offsets->numel() - 1;
      STD_TORCH_CHECK(size >= 0, "ptr must have shape [S+1]");
      expect(*offsets, "ptr", ScalarType::Long, size + 1);
      ptr = read<int64_t>(*offsets);
      bool good = ptr[0] == 0 && ptr[size] == n;
      for (int64_t s = 0; s < size; s++) good &= ptr[s] <= ptr[s + 1];
      STD_TORCH_CHECK(good, "ptr must rise from 0 to the number of rows");
    }
    if (flags) {
      expect(*flags, "active", ScalarType::Bool, size);
      active = read<bool>(*flags);
    }
  }

  int64_t begin(int64_t s) const { return ptr ? ptr[s] : 0; }
  int64_t end(int64_t s) const { return ptr ? ptr[s + 1] : rows; }
  bool is_active(int64_t s) const { return !active || active[s]; }

  // Calls on(a, b) and off(a, b) on the runs of active and other rows.
  template <class On, class Off>
  void runs(int64_t begin_row, int64_t end_row, On on, Off off) const {
    if (!active) return on(begin_row, end_row);
    int64_t s = 0;
    if (ptr)
      s = std::upper_bound(ptr, ptr + size, begin_row) - ptr - 1;
    for (int64_t i = begin_row; i < end_row;) {
      const bool flag = active[s];
      int64_t stop = end(s);
      while (s + 1 < size && active[s + 1] == flag && stop < end_row)
        stop = end(++s);
      stop = std::min(stop, end_row);
      flag ? on(i, stop) : off(i, stop);
      i = stop;
      s++;
    }
  }

  // Sums of the columns of [rows, width], segment by segment, always in the
  // same order; 0 where not active.
  void sum(const double* rowwise, int width, double* out,
           int64_t block = 1) const {
    for (int64_t s = 0; s < size; s++)
      for (int k = 0; k < width; k++) {
        double part[4] = {0, 0, 0, 0};
        const int64_t stop = (end(s) + block - 1) / block;
        if (is_active(s))
          for (int64_t i = begin(s) / block; i < stop; i++)
            part[i & 3] += rowwise[i * width + k];
        out[s * width + k] = part[0] + part[1] + (part[2] + part[3]);
      }
  }
};

// Room for sums by row that outlives a call: iterations come by the thousand.
double* scratch(int64_t size) {
  thread_local std::vector<double> room;
  if (int64_t(room.size()) < size) room.resize(size);
  return room.data();
}

// Larger than what caches keep until the next iteration, and in rows of whole
// vectors.
bool is_streamed(const Tensor& y, int64_t channels, Dtype type) {
  const int64_t width = channels * size_of(type);
  return type != Dtype::bf16 && type != Dtype::f16 && width % 64 == 0 &&
         y.numel() * size_of(type) > (int64_t(16) << 20) &&
         reinterpret_cast<uintptr_t>(y.const_data_ptr()) % 64 == 0;
}

// Fresh memory of this size comes from the system page by page; with pages of
// 2 MiB it comes, and is gathered from, markedly faster.
void prefer_huge_pages(void* data, int64_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t kPage = uintptr_t(2) << 20;
  const uintptr_t begin = (uintptr_t(data) + kPage - 1) / kPage * kPage;
  const uintptr_t end = (uintptr_t(data) + bytes) / kPage * kPage;
  if (data && end >= begin + 2 * kPage)
    madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// -- operators ----------------------------------------------------------------

// One call of the propagation kernel: checked, then run as often as wanted.
struct Pass {
  Csr csr;
  Segments segments;
  Propagate job{};

  Pass(const Tensor& rowptr, const Tensor& col, const MaybeTensor& value,
       const Tensor& h, const Tensor& y, double alpha, const MaybeTensor& bias,
       const MaybeTensor& inject, int64_t activation, int64_t reduce,
       const MaybeTensor& ptr, const MaybeTensor& active)
      : csr(csr_of(rowptr, col)), segments(ptr, active, csr.rows) {
    STD_TORCH_CHECK(h.dim() == 2 && h.is_contiguous(),
                    "h must be contiguous, of shape [M, F]");
    job.rowptr = csr.rowptr;
    job.col = csr.col;
    job.wide = csr.wide;
    job.entries = csr.entries;
    job.sources = h.size(0);
    job.channels = h.size(1);
    job.message = dtype_of(h, "h");
    job.state = dtype_of(y, "y");
    expect_pair(job.message, job.state);
    const ScalarType exact = accumulation(job.message);
    if (value) expect(*value, "value", exact, csr.entries);
    if (bias) expect(*bias, "bias", exact, job.channels);
    if (inject) expect(*inject, "inject", y.scalar_type(), size());
    expect(y, "y", y.scalar_type(), size());
    job.value = read(value);
    job.h = h.const_data_ptr();
    job.bias = read(bias);
    job.inject = read(inject);
    job.alpha = alpha;
    job.activation = Activation(activation);
    job.reduce = Reduce(reduce);
    job.y = y.mutable_data_ptr();
    job.stream = is_streamed(y, job.channels, job.state);
    // Segments may end anywhere, a single one only at the last row.
    job.block = ptr ? 1 : 16;
    prefer_huge_pages(job.y, size() * size_of(job.state));
  }

  int64_t size() const { return csr.rows * job.channels; }

  void run(double* stats) {
    const int64_t blocks = (csr.rows + job.block - 1) / job.block;
    job.stats = stats ? scratch(2 * blocks) : nullptr;
    if (stats && size() == 0) std::fill(job.stats, job.stats + 2 * blocks, 0.0);
    if (size() > 0)
      parallel_rows(
          csr.rows,
          [&](int64_t i) { return (csr.start(i) + 4 * i) * job.channels; },
          [&](int64_t begin, int64_t end) {
            segments.runs(
                begin, end,
                [&](int64_t a, int64_t b) { kernels().propagate(job, a, b); },
                [&](int64_t a, int64_t b) { keep(a, b); });
          },
          job.block);
    if (stats) segments.sum(job.stats, 2, stats, job.block);
  }

  // Rows that are not active.
  void keep(int64_t begin, int64_t end) const {
    const int64_t width = size_of(job.state) * job.channels;
    const int64_t offset = begin * width, bytes = (end - begin) * width;
    const char* from = static_cast<const char*>(job.x) + offset;
    if (bytes) std::memcpy(static_cast<char*>(job.y) + offset, from, bytes);
    if (job.z && bytes)
      std::memcpy(static_cast<char*>(job.z) + offset, from, bytes);
    if (job.arg)
      std::fill(job.arg + begin * job.channels, job.arg + end * job.channels,
                -1);
  }
};

double* stats_of(const MaybeTensor& stats, int64_t size) {
  if (!stats) return nullptr;
  expect(*stats, "stats", ScalarType::Double, size);
  return static_cast<double*>(stats->mutable_data_ptr());
}

void propagate(Tensor rowptr, Tensor col, MaybeTensor value, Tensor h,
               MaybeTensor x, double alpha, MaybeTensor bias,
               MaybeTensor inject, int64_t activation, int64_t reduce,
               MaybeTensor ptr, MaybeTensor active, bool check, Tensor y,
               MaybeTensor stats, MaybeTensor z, MaybeTensor arg) {
  Pass pass(rowptr, col, value, h, y, alpha, bias, inject, activation, reduce,
            ptr, active);
  if (check) check_indices(pass.csr, pass.job.sources);
  STD_TORCH_CHECK(!active || x, "active needs x");
  if (x) expect(*x, "x", y.scalar_type(), pass.size());
  if (z) expect(*z, "z", y.scalar_type(), pass.size());
  if (arg) {
    expect_numbered(pass.csr.entries);
    expect(*arg, "arg", ScalarType::Int, pass.size());
  }
  pass.job.x = read(x);
  pass.job.z = write(z);
  pass.job.arg = static_cast<int32_t*>(write(arg));
  prefer_huge_pages(pass.job.z, pass.size() * size_of(pass.job.state));
  pass.run(stats_of(stats, 2 * pass.segments.size));
}

void multiply(const Tensor& a, const Tensor& b, const Tensor& out) {
  using torch::stable::detail::from;
  StableIValue stack[3] = {from(a), from(b), from(out)};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::mm", "out", stack, TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);  // to let go of it
}

// h = x W', taken in the dtype of x. Where h is narrower it is rounded while
// the product is still in the cache.
void product(Tensor x, Tensor weight, Tensor h) {
  constexpr int64_t kRows = 2048;
  if (h.scalar_type() == x.scalar_type()) return multiply(x, weight, h);
  const int64_t rows = x.size(0);
  Tensor panel = torch::stable::new_empty(
      x, {std::min(rows, kRows), weight.size(1)}, x.scalar_type());
  for (int64_t begin = 0; begin < rows; begin += kRows) {
    const int64_t size = std::min(rows - begin, kRows);
    Tensor from = torch::stable::narrow(x, 0, begin, size);
    Tensor part = torch::stable::narrow(panel, 0, 0, size);
    Tensor to = torch::stable::narrow(h, 0, begin, size);
    multiply(from, weight, part);
    torch::stable::copy_(to, part);
  }
}

// `count` updates of h = x W', z = activation(...), from x to y by way of
// `other`. Without `weight`, h is the state itself; h may be narrower than it.
// stats is [count, S, 2].
void steps(Tensor rowptr, Tensor col, MaybeTensor value, MaybeTensor weight,
           Tensor x, double alpha, MaybeTensor bias, MaybeTensor inject,
           int64_t activation, int64_t reduce, MaybeTensor ptr, int64_t count,
           Tensor y, MaybeTensor other, MaybeTensor h, MaybeTensor stats) {
  STD_TORCH_CHECK(count > 0 && (count == 1 || other), "other is needed");
  STD_TORCH_CHECK(!weight || h, "h is needed");
  Pass pass(rowptr, col, value, h ? *h : x, y, alpha, bias, inject, activation,
            reduce, ptr, {});
  STD_TORCH_CHECK(pass.job.sources == pass.csr.rows,
                  "the graph must be square");
  expect(x, "x", y.scalar_type(), pass.size());
  if (other) expect(*other, "other", y.scalar_type(), pass.size());
  double* sums = stats_of(stats, 2 * pass.segments.size * count);
  for (int64_t k = 0; k < count; k++) {
    const bool even = (count - 1 - k) % 2 == 0;
    const Tensor& from = k == 0 ? x : even ? *other : y;
    const Tensor& to = even ? y : *other;
    Tensor gathered = h ? *h : from;
    if (weight)
      product(from, *weight, gathered);
    else if (h)
      torch::stable::copy_(gathered, from);
    pass.job.h = gathered.const_data_ptr();
    // Without smoothing and sums there is nothing to read the old state for.
    pass.job.x = alpha != 0 || sums ? from.const_data_ptr() : nullptr;
    pass.job.y = to.mutable_data_ptr();
    pass.run(sums ? sums + 2 * pass.segments.size * k : nullptr);
  }
}

// How an elementwise kernel cuts a tensor: by its dim 0 where segments end
// between rows, else into rows of a length that suits it, and a rest.
struct Cut {
  int64_t rows, channels, rest;

  Cut(const Tensor& t, bool segmented) {
    if (segmented) {
      rows = t.dim() ? t.size(0) : 1;
      channels = rows ? t.numel() / rows : 0;
      rest = 0;
    } else {
      channels = 4096;
      rows = t.numel() / channels;
      rest = t.numel() % channels;
    }
  }
  int64_t all() const { return rows + (rest > 0); }
  int64_t begin(int64_t row) const { return row * channels; }
  int64_t end(int64_t row) const {
    return std::min(row, rows) * channels + (row > rows ? rest : 0);
  }
};

template <class Job, class Kernel, class Off>
void over_rows(const Cut& cut, const Segments& segments, const Job& job,
               const Job& rest, Kernel kernel, Off off) {
  const auto on = [&](int64_t a, int64_t b) {
    if (a < std::min(b, cut.rows)) kernel(job, a, std::min(b, cut.rows));
    if (b > cut.rows) kernel(rest, 0, 1);
  };
  parallel_rows(
      cut.all(), [&](int64_t i) { return cut.end(i); },
      [&](int64_t begin, int64_t end) {
        segments.runs(begin, end, on, [&](int64_t a, int64_t b) {
          off(cut.begin(a), cut.end(b) - cut.begin(a));
        });
      });
}

template <class T>
T* shift(T* p, int64_t bytes) {
  using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
  return p ? static_cast<T*>(static_cast<Byte*>(p) + bytes) : nullptr;
}

void update(Tensor x, Tensor z, double alpha, MaybeTensor ptr,
            MaybeTensor active, Tensor y, Tensor stats) {
  const ScalarType state = x.scalar_type();
  expect(x, "x", state, x.numel());
  expect(z, "z", state, x.numel());
  expect(y, "y", state, x.numel());
  const Cut cut(x, bool(ptr));
  const Segments segments(ptr, active, cut.all());
  expect(stats, "stats", ScalarType::Double, 2 * segments.size);
  Update job{};
  job.state = dtype_of(x, "x");
  job.channels = cut.channels;
  job.alpha = alpha;
  job.x = x.const_data_ptr();
  job.z = z.const_data_ptr();
  job.y = y.mutable_data_ptr();
  job.stream = is_streamed(y, job.channels, job.state);
  job.stats = scratch(2 * cut.all());
  const int64_t width = size_of(job.state);
  prefer_huge_pages(job.y, y.numel() * width);
  Update rest = job;
  rest.channels = cut.rest;
  rest.x = shift(job.x, cut.begin(cut.rows) * width);
  rest.z = shift(job.z, cut.begin(cut.rows) * width);
  rest.y = shift(job.y, cut.begin(cut.rows) * width);
  rest.stats = job.stats + 2 * cut.rows;
  over_rows(cut, segments, job, rest, kernels().update,
            [&](int64_t from, int64_t size) {
              std::memcpy(shift(job.y, from * width),
                          shift(job.x, from * width), size * width);
            });
  segments.sum(job.stats, 2, static_cast<double*>(stats.mutable_data_ptr()));
}

void update_backward(Tensor gy, MaybeTensor z, MaybeTensor x, double alpha,
                     int64_t activation, MaybeTensor ptr, MaybeTensor active,
                     MaybeTensor gx, Tensor gz, MaybeTensor galpha) {
  const ScalarType state = gy.scalar_type();
  STD_TORCH_CHECK(z || (!activation && !galpha), "z is needed");
  STD_TORCH_CHECK(x || !galpha, "x is needed");
  expect(gy, "gy", state, gy.numel());
  expect(gz, "gz", state, gy.numel());
  if (z) expect(*z, "z", state, gy.numel());
  if (x) expect(*x, "x", state, gy.numel());
  if (gx) expect(*gx, "gx", state, gy.numel());
  const Cut cut(gy, bool(ptr));
  const Segments segments(ptr, active, cut.all());
  UpdateBackward job{};
  job.state = dtype_of(gy, "gy");
  job.activation = Activation(activation);
  job.channels = cut.channels;
  job.alpha = alpha;
  job.gy = gy.const_data_ptr();
  job.z = read(z);
  job.gx = write(gx);
  job.gz = gz.mutable_data_ptr();
  if (galpha) {
    expect(*galpha, "galpha", ScalarType::Double, 1);
    job.x = read(x);
    job.galpha = scratch(cut.all());
    std::fill(job.galpha, job.galpha + cut.all(), 0.0);
  }
  const int64_t width = size_of(job.state);
  prefer_huge_pages(job.gz, gy.numel() * width);
  prefer_huge_pages(job.gx, gy.numel() * width);
  const int64_t offset = cut.begin(cut.rows) * width;
  UpdateBackward rest = job;
  rest.channels = cut.rest;
  rest.gy = shift(job.gy, offset);
  rest.z = shift(job.z, offset);
  rest.x = shift(job.x, offset);
  rest.gx = shift(job.gx, offset);
  rest.gz = shift(job.gz, offset);
  if (galpha) rest.galpha = job.galpha + cut.rows;
  over_rows(cut, segments, job, rest, kernels().update_backward,
            [&](int64_t from, int64_t size) {  // y = x there
              std::memset(shift(job.gz, from * width), 0, size * width);
              if (job.gx)
                std::memcpy(shift(job.gx, from * width),
                            shift(job.gy, from * width), size * width);
            });
  if (galpha)
    Segments({}, {}, cut.all())
        .sum(job.galpha, 1, static_cast<double*>(galpha->mutable_data_ptr()));
}

void sampled(Tensor rowptr, Tensor col, Tensor g, Tensor h, MaybeTensor arg,
             int64_t reduce, Tensor out) {
  const Csr csr = csr_of(rowptr, col);
  Sampled job{};
  job.rowptr = csr.rowptr;
  job.col = csr.col;
  job.wide = csr.wide;
  job.message = dtype_of(h, "h");
  job.state = dtype_of(g, "g");
  job.reduce = Reduce(reduce);
  job.channels = h.size(1);
  expect(g, "g", g.scalar_type(), csr.rows * job.channels);
  expect(h, "h", h.scalar_type(), h.size(0) * job.channels);
  expect(out, "out", accumulation(job.message), csr.entries);
  STD_TORCH_CHECK(bool(arg) == (job.reduce == Reduce::max),
                  "arg belongs to max");
  if (arg) expect(*arg, "arg", ScalarType::Int, csr.rows * job.channels);
  check_indices(csr, h.size(0));
  job.g = g.const_data_ptr();
  job.h = h.const_data_ptr();
  job.arg = static_cast<const int32_t*>(read(arg));
  job.out = out.mutable_data_ptr();
  const Kernels& k = kernels();
  parallel_rows(
      csr.rows, [&](int64_t i) { return (csr.start(i) + i) * job.channels; },
      [&](int64_t begin, int64_t end) { k.sampled(job, begin, end); });
}

void max_backward(Tensor colptr, Tensor row, Tensor perm, MaybeTensor value,
                  Tensor g, Tensor arg, Tensor out) {
  const Csr csr = csr_of(colptr, row);
  MaxBackward job{};
  job.wide = csr.wide;
  job.message = dtype_of(out, "out");
  job.state = dtype_of(g, "g");
  job.channels = g.size(1);
  expect(perm, "perm", row.scalar_type(), csr.entries);
  expect(g, "g", g.scalar_type(), g.size(0) * job.channels);
  expect(arg, "arg", ScalarType::Int, g.size(0) * job.channels);
  expect(out, "out", out.scalar_type(), csr.rows * job.channels);
  if (value) expect(*value, "value", accumulation(job.message), csr.entries);
  check_indices(csr, g.size(0));
  job.colptr = csr.rowptr;
  job.row = csr.col;
  job.perm = perm.const_data_ptr();
  job.value = read(value);
  job.g = g.const_data_ptr();
  job.arg = read<int32_t>(arg);
  job.out = out.mutable_data_ptr();
  const Kernels& k = kernels();
  parallel_rows(
      csr.rows, [&](int64_t i) { return (csr.start(i) + i) * job.channels; },
      [&](int64_t begin, int64_t end) { k.max_backward(job, begin, end); });
}

// For memory that torch has just allocated and nobody has touched.
void prefer_huge_pages_in(Tensor fresh) {
  prefer_huge_pages(fresh.mutable_data_ptr(),
                    fresh.numel() * size_of(dtype_of(fresh, "fresh")));
}

template <class I>
void compress_typed(const Tensor& index, int64_t size, Tensor& ptr,
                    Tensor& perm) {
  const I* key = read<I>(index);
  I* start = static_cast<I*>(ptr.mutable_data_ptr());
  I* order = static_cast<I*>(perm.mutable_data_ptr());
  const int64_t entries = index.numel();
  std::fill(start, start + size + 1, I(0));
  for (int64_t e = 0; e < entries; e++) {
    STD_TORCH_CHECK(key[e] >= 0 && key[e] < size, "index must be in [0, ",
                    size, "), got ", int64_t(key[e]));
    start[key[e] + 1]++;
  }
  for (int64_t i = 0; i < size; i++) start[i + 1] += start[i];
  std::vector<I> next(start, start + size);
  for (int64_t e = 0; e < entries; e++) order[next[key[e]]++] = I(e);
}

// Sorts by counting: perm puts equal indices together, those of i at the
// places ptr[i] to ptr[i+1], in their old order.
void compress(Tensor index, int64_t size, Tensor ptr, Tensor perm) {
  const ScalarType type = index.scalar_type();
  expect(index, "index", type, index.numel());
  expect(ptr, "ptr", type, size + 1);
  expect(perm, "perm", type, index.numel());
  if (is_wide(index, "index"))
    compress_typed<int64_t>(index, size, ptr, perm);
  else
    compress_typed<int32_t>(index, size, ptr, perm);
}

}  // namespace
}  // namespace torch_picard

STABLE_TORCH_LIBRARY_IMPL(torch_picard, CPU, m) {
  m.impl("_propagate", TORCH_BOX(&torch_picard::propagate));
  m.impl("_product", TORCH_BOX(&torch_picard::product));
  m.impl("_steps", TORCH_BOX(&torch_picard::steps));
  m.impl("_update", TORCH_BOX(&torch_picard::update));
  m.impl("_update_backward", TORCH_BOX(&torch_picard::update_backward));
  m.impl("_sampled", TORCH_BOX(&torch_picard::sampled));
  m.impl("_max_backward", TORCH_BOX(&torch_picard::max_backward));
  m.impl("_csr_defect", TORCH_BOX(&torch_picard::csr_defect));
  m.impl("_prefer_huge_pages",
         TORCH_BOX(&torch_picard::prefer_huge_pages_in));
  m.impl("_compress", TORCH_BOX(&torch_picard::compress));
}

// Which of the tables is in use, for `python -m torch_picard`.
extern "C" __attribute__((visibility("default"))) const char*
torch_picard_isa() {
  return torch_picard::kernels().name;
}
