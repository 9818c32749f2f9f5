// The CUDA side of the operators declared in torch_picard/ops/library.py:
// what the tensors must look like. Nothing here waits for the device, except
// where `check` asks to, so that calls can be captured in a CUDA graph.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>

#include <vector>

#include "../cpu/checks.h"
#include "kernels.h"

namespace torch_picard {
namespace {

using cuda::kSums;
using cuda::Place;
using cuda::Segments;
using torch::stable::accelerator::DeviceGuard;

// -- what comes in ------------------------------------------------------------

// The device of a call, its stream, and scratch memory. What is freed when
// the call returns is given again only to later work on the same stream.
struct Call {
  const Tensor& like;
  DeviceGuard guard;
  std::vector<Tensor> kept;
  Place place;

  explicit Call(const Tensor& t) : like(t), guard(t.get_device_index()) {
    place.device = t.get_device_index();
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(
        aoti_torch_get_current_cuda_stream(place.device, &stream));
    place.stream = static_cast<cudaStream_t>(stream);
    place.scratch = [this](int64_t size) {
      return static_cast<double*>(memory(size, ScalarType::Double));
    };
  }
  Call(const Call&) = delete;

  void* memory(int64_t size, ScalarType type) {
    kept.push_back(torch::stable::new_empty(like, {size}, type));
    return kept.back().mutable_data_ptr();
  }

  void expect(const Tensor& t, const char* name, ScalarType type,
              int64_t size) const {
    torch_picard::expect(t, name, type, size);
    STD_TORCH_CHECK(t.is_cuda() && t.get_device_index() == place.device, name,
                    " is on another device");
  }
  void expect(const MaybeTensor& t, const char* name, ScalarType type,
              int64_t size) const {
    if (t) expect(*t, name, type, size);
  }
};

struct Csr {
  const void* rowptr;
  const void* col;
  bool wide;
  int64_t rows, entries;

  Csr(const Call& call, const Tensor& offsets, const Tensor& indices) {
    const ScalarType type = offsets.scalar_type();
    wide = is_wide(offsets, "rowptr");
    expect_offsets(offsets);
    rows = offsets.numel() - 1;
    entries = indices.numel();
    call.expect(offsets, "rowptr", type, rows + 1);
    call.expect(indices, "col", type, entries);
    rowptr = offsets.const_data_ptr();
    col = indices.const_data_ptr();
  }
};

// What the kernels count in 32 bits.
void expect_sizes(int64_t sources, int64_t entries, int64_t channels) {
  STD_TORCH_CHECK(sources < UINT32_MAX && entries < UINT32_MAX,
                  "a graph must have fewer than 2^32 - 1 nodes and edges");
  STD_TORCH_CHECK(channels < (int64_t(1) << 28),
                  "there must be fewer than 2^28 columns");
}

Segments segments_of(const Call& call, const MaybeTensor& ptr,
                     const MaybeTensor& active) {
  Segments segments{nullptr, nullptr, 1};
  if (ptr) {
    segments.size = ptr->numel() - 1;
    STD_TORCH_CHECK(segments.size >= 0, "ptr must have shape [S+1]");
    call.expect(*ptr, "ptr", ScalarType::Long, segments.size + 1);
    segments.ptr = static_cast<const int64_t*>(ptr->const_data_ptr());
  }
  call.expect(active, "active", ScalarType::Bool, segments.size);
  segments.active = static_cast<const bool*>(read(active));
  // No rows, no flag: a segment without rows is never looked at.
  if (segments.size == 0) segments.active = nullptr;
  return segments;
}

void clear(const Call& call, const MaybeTensor& t) {
  if (t && t->numel())
    STD_CUDA_CHECK(cudaMemsetAsync(t->mutable_data_ptr(), 0,
                                   t->numel() * sizeof(double),
                                   call.place.stream));
}

void check_indices(Call& call, const Propagate& job, int64_t rows,
                   const Segments& segments) {
  const cudaStream_t stream = call.place.stream;
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  STD_CUDA_CHECK(cudaStreamIsCapturing(stream, &status));
  if (status != cudaStreamCaptureStatusNone) {
    // Nothing can come back from a graph while it is captured: a bad index
    // then is a failed assertion on the device, as in torch's own kernels.
    cuda::check(job, rows, segments, nullptr, call.place);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    return;
  }
  int* found = static_cast<int*>(call.memory(1, ScalarType::Int));
  int bits = 0;
  STD_CUDA_CHECK(cudaMemsetAsync(found, 0, sizeof bits, stream));
  cuda::check(job, rows, segments, found, call.place);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  STD_CUDA_CHECK(cudaMemcpyAsync(&bits, found, sizeof bits,
                                 cudaMemcpyDeviceToHost, stream));
  STD_CUDA_CHECK(cudaStreamSynchronize(stream));
  STD_TORCH_CHECK(!(bits & cuda::kStart), "rowptr must start at 0");
  STD_TORCH_CHECK(!(bits & cuda::kEnd), "rowptr must end at the length of col");
  STD_TORCH_CHECK(!(bits & cuda::kFalls), "rowptr must not decrease");
  STD_TORCH_CHECK(!(bits & cuda::kOutside), "col must be in [0, rows of h)");
  STD_TORCH_CHECK(!(bits & cuda::kPtr),
                  "ptr must rise from 0 to the number of rows");
}

// -- operators ----------------------------------------------------------------

void propagate(Tensor rowptr, Tensor col, MaybeTensor value, Tensor h,
               MaybeTensor x, double alpha, MaybeTensor bias,
               MaybeTensor inject, int64_t activation, int64_t reduce,
               MaybeTensor ptr, MaybeTensor active, bool check, Tensor y,
               MaybeTensor stats, MaybeTensor z, MaybeTensor arg) {
  Call call(y);
  const Csr csr(call, rowptr, col);
  STD_TORCH_CHECK(h.dim() == 2, "h must be of shape [M, F]");
  Propagate job{};
  job.rowptr = csr.rowptr;
  job.col = csr.col;
  job.wide = csr.wide;
  job.entries = csr.entries;
  job.sources = h.size(0);
  job.channels = h.size(1);
  job.message = dtype_of(h, "h");
  job.state = dtype_of(y, "y");
  expect_pair(job.message, job.state);
  expect_sizes(job.sources, csr.entries, job.channels);
  const ScalarType state = y.scalar_type();
  const ScalarType exact = accumulation(job.message);
  const int64_t size = csr.rows * job.channels;
  call.expect(h, "h", h.scalar_type(), job.sources * job.channels);
  call.expect(value, "value", exact, csr.entries);
  call.expect(bias, "bias", exact, job.channels);
  call.expect(x, "x", state, size);
  call.expect(inject, "inject", state, size);
  call.expect(y, "y", state, size);
  call.expect(z, "z", state, size);
  call.expect(arg, "arg", ScalarType::Int, size);
  if (arg) expect_numbered(csr.entries);
  job.value = read(value);
  job.h = h.const_data_ptr();
  job.x = read(x);
  job.bias = read(bias);
  job.inject = read(inject);
  job.alpha = alpha;
  job.activation = Activation(activation);
  job.reduce = Reduce(reduce);
  job.y = y.mutable_data_ptr();
  job.z = write(z);
  job.arg = static_cast<int32_t*>(write(arg));
  const Segments segments = segments_of(call, ptr, active);
  STD_TORCH_CHECK(!active || x, "active needs x");
  call.expect(stats, "stats", ScalarType::Double, kSums * segments.size);
  if (check) check_indices(call, job, csr.rows, segments);
  if (size == 0) return clear(call, stats);
  cuda::propagate(job, csr.rows, segments, static_cast<double*>(write(stats)),
                  call.place);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

// Segments end between rows of dim 0; without them all is one row.
int64_t rows_of(const Tensor& t, const MaybeTensor& ptr) {
  return ptr && t.dim() ? t.size(0) : 1;
}

void update(Tensor x, Tensor z, double alpha, MaybeTensor ptr,
            MaybeTensor active, Tensor y, Tensor stats) {
  Call call(y);
  const ScalarType state = x.scalar_type();
  const int64_t size = x.numel();
  call.expect(x, "x", state, size);
  call.expect(z, "z", state, size);
  call.expect(y, "y", state, size);
  const Segments segments = segments_of(call, ptr, active);
  call.expect(stats, "stats", ScalarType::Double, kSums * segments.size);
  if (size == 0) return clear(call, stats);
  const int64_t rows = rows_of(x, ptr);
  Update job{};
  job.state = dtype_of(x, "x");
  job.channels = size / rows;
  job.alpha = alpha;
  job.x = x.const_data_ptr();
  job.z = z.const_data_ptr();
  job.y = y.mutable_data_ptr();
  cuda::update(job, rows, segments,
               static_cast<double*>(stats.mutable_data_ptr()), call.place);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

void update_backward(Tensor gy, MaybeTensor z, MaybeTensor x, double alpha,
                     int64_t activation, MaybeTensor ptr, MaybeTensor active,
                     MaybeTensor gx, Tensor gz, MaybeTensor galpha) {
  Call call(gz);
  const ScalarType state = gy.scalar_type();
  const int64_t size = gy.numel();
  STD_TORCH_CHECK(z || (!activation && !galpha), "z is needed");
  STD_TORCH_CHECK(x || !galpha, "x is needed");
  call.expect(gy, "gy", state, size);
  call.expect(gz, "gz", state, size);
  call.expect(z, "z", state, size);
  call.expect(x, "x", state, size);
  call.expect(gx, "gx", state, size);
  call.expect(galpha, "galpha", ScalarType::Double, 1);
  const Segments segments = segments_of(call, ptr, active);
  if (size == 0) return clear(call, galpha);
  const int64_t rows = rows_of(gy, ptr);
  UpdateBackward job{};
  job.state = dtype_of(gy, "gy");
  job.activation = Activation(activation);
  job.channels = size / rows;
  job.alpha = alpha;
  job.gy = gy.const_data_ptr();
  job.z = read(z);
  if (galpha) job.x = read(x);
  job.gx = write(gx);
  job.gz = gz.mutable_data_ptr();
  cuda::update_backward(job, rows, segments,
                        static_cast<double*>(write(galpha)), call.place);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

void sampled(Tensor rowptr, Tensor col, Tensor g, Tensor h, MaybeTensor arg,
             int64_t reduce, Tensor out) {
  Call call(out);
  const Csr csr(call, rowptr, col);
  STD_TORCH_CHECK(h.dim() == 2, "h must be of shape [M, F]");
  Sampled job{};
  job.rowptr = csr.rowptr;
  job.col = csr.col;
  job.wide = csr.wide;
  job.message = dtype_of(h, "h");
  job.state = dtype_of(g, "g");
  job.reduce = Reduce(reduce);
  job.channels = h.size(1);
  expect_pair(job.message, job.state);
  expect_sizes(h.size(0), csr.entries, job.channels);
  call.expect(g, "g", g.scalar_type(), csr.rows * job.channels);
  call.expect(h, "h", h.scalar_type(), h.size(0) * job.channels);
  call.expect(out, "out", accumulation(job.message), csr.entries);
  STD_TORCH_CHECK(bool(arg) == (job.reduce == Reduce::max),
                  "arg belongs to max");
  call.expect(arg, "arg", ScalarType::Int, csr.rows * job.channels);
  job.g = g.const_data_ptr();
  job.h = h.const_data_ptr();
  job.arg = static_cast<const int32_t*>(read(arg));
  job.out = out.mutable_data_ptr();
  if (csr.entries == 0) return;
  cuda::sampled(job, csr.rows, csr.entries, h.size(0), call.place);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

void max_backward(Tensor colptr, Tensor row, Tensor perm, MaybeTensor value,
                  Tensor g, Tensor arg, Tensor out) {
  Call call(out);
  const Csr csr(call, colptr, row);
  STD_TORCH_CHECK(g.dim() == 2, "g must be of shape [N, F]");
  MaxBackward job{};
  job.wide = csr.wide;
  job.message = dtype_of(out, "out");
  job.state = dtype_of(g, "g");
  job.channels = g.size(1);
  expect_pair(job.message, job.state);
  expect_sizes(g.size(0), csr.entries, job.channels);
  expect_numbered(csr.entries);
  call.expect(perm, "perm", row.scalar_type(), csr.entries);
  call.expect(g, "g", g.scalar_type(), g.size(0) * job.channels);
  call.expect(arg, "arg", ScalarType::Int, g.size(0) * job.channels);
  call.expect(out, "out", out.scalar_type(), csr.rows * job.channels);
  call.expect(value, "value", accumulation(job.message), csr.entries);
  job.colptr = csr.rowptr;
  job.row = csr.col;
  job.perm = perm.const_data_ptr();
  job.value = read(value);
  job.g = g.const_data_ptr();
  job.arg = static_cast<const int32_t*>(arg.const_data_ptr());
  job.out = out.mutable_data_ptr();
  if (out.numel() == 0) return;
  cuda::max_backward(job, csr.rows, csr.entries, g.size(0), call.place);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace
}  // namespace torch_picard

STABLE_TORCH_LIBRARY_IMPL(torch_picard, CUDA, m) {
  m.impl("_propagate", TORCH_BOX(&torch_picard::propagate));
  m.impl("_update", TORCH_BOX(&torch_picard::update));
  m.impl("_update_backward", TORCH_BOX(&torch_picard::update_backward));
  m.impl("_sampled", TORCH_BOX(&torch_picard::sampled));
  m.impl("_max_backward", TORCH_BOX(&torch_picard::max_backward));
}
