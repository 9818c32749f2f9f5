// What tensors must look like, on any device; ../cuda uses it as well.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>

#include "kernels.h"

namespace torch_picard {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

inline Dtype dtype_of(const Tensor& t, const char* name) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return Dtype::f32;
    case ScalarType::Double:
      return Dtype::f64;
    case ScalarType::BFloat16:
      return Dtype::bf16;
    case ScalarType::Half:
      return Dtype::f16;
    default:
      STD_TORCH_CHECK(false, name, " must be of a real floating dtype");
  }
  return Dtype::f32;
}

inline bool is_wide(const Tensor& t, const char* name) {
  const bool wide = t.scalar_type() == ScalarType::Long;
  STD_TORCH_CHECK(wide || t.scalar_type() == ScalarType::Int, name,
                  " must be int32 or int64");
  return wide;
}

inline ScalarType accumulation(Dtype t) {
  return t == Dtype::f64 ? ScalarType::Double : ScalarType::Float;
}

inline void expect(const Tensor& t, const char* name, ScalarType type,
                   int64_t size) {
  STD_TORCH_CHECK(t.scalar_type() == type, name, " has a wrong dtype");
  STD_TORCH_CHECK(t.numel() == size, name, " must have ", size,
                  " elements, got ", t.numel());
  STD_TORCH_CHECK(t.is_contiguous(), name, " must be contiguous");
}

inline void expect_offsets(const Tensor& rowptr) {
  STD_TORCH_CHECK(rowptr.dim() == 1 && rowptr.numel() > 0,
                  "rowptr must have shape [N+1]");
}

// What is gathered may be of half precision where the state is float.
inline void expect_pair(Dtype message, Dtype state) {
  const bool mixed = state == Dtype::f32 && size_of(message) == 2;
  STD_TORCH_CHECK(state == message || mixed,
                  "what is gathered and the state must have the same dtype");
}

// The entries of maxima are kept as int32.
inline void expect_numbered(int64_t entries) {
  STD_TORCH_CHECK(entries <= INT32_MAX, "max needs fewer than 2^31 entries");
}

inline const void* read(const MaybeTensor& t) {
  return t ? t->const_data_ptr() : nullptr;
}
inline void* write(const MaybeTensor& t) {
  return t ? t->mutable_data_ptr() : nullptr;
}

}  // namespace
}  // namespace torch_picard
