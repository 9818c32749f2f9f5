// What the compiled kernels need to know, free of torch: plain pointers and
// sizes. One table of functions for each instruction set, see kernels.cpp.
#pragma once

#include <cstdint>

namespace torch_picard {

enum class Dtype : int { f32, f64, bf16, f16 };
enum class Activation : int { none, relu, tanh };
enum class Reduce : int { sum, mean, max };

// One row of a matrix after the other, C columns each. Null: not wanted.
// `value`, `bias` are in the accumulation type: double for f64, else float.
struct Propagate {
  // the graph: row i holds the entries rowptr[i] to rowptr[i+1]
  const void* rowptr;
  const void* col;
  const void* value;
  bool wide;  // int64 indices
  int64_t entries;
  int64_t sources;  // rows of h
  // the features
  const void* h;
  const void* x;
  const void* bias;
  const void* inject;
  int64_t channels;
  Dtype message;  // of h
  Dtype state;    // of x, inject, y, z
  double alpha;
  Activation activation;
  Reduce reduce;
  // the results
  void* y;
  void* z;
  int32_t* arg;   // [rows, C], the entry that the maximum came from, or -1
  // |z - x|^2, |z|^2 of every `block` rows, counted from row 0: [.., 2]
  double* stats;
  int64_t block;
  bool stream;  // y is too large to stay in the cache
};

// y = alpha*x + (1-alpha)*z, elementwise, row by row.
struct Update {
  const void* x;
  const void* z;
  void* y;
  double* stats;  // [rows, 2], may be null
  int64_t channels;
  Dtype state;
  double alpha;
  bool stream;
};

// gx = alpha*gy, gz = (1-alpha)*gy*activation'(z)
struct UpdateBackward {
  const void* gy;
  const void* z;  // null if the activation is none and galpha not wanted
  const void* x;  // null if galpha is not wanted
  void* gx;
  void* gz;
  double* galpha;  // [rows]: sum of gy*(x-z)
  int64_t channels;
  Dtype state;
  double alpha;
  Activation activation;
};

// out_e = <g_i, h_j> for the entries e = (i, j); for max only over the
// columns whose maximum came from e; for mean divided by the row's length.
struct Sampled {
  const void* rowptr;
  const void* col;
  bool wide;
  const void* g;
  const void* h;
  const int32_t* arg;
  int64_t channels;
  Dtype message;  // of h
  Dtype state;    // of g
  Reduce reduce;
  void* out;  // in the accumulation type
};

// out_j = sum of value_e * g_i over the entries e = (i, j) of column j whose
// maximum was taken. perm[k] is the entry at place k of the transposed graph.
struct MaxBackward {
  const void* colptr;
  const void* row;
  const void* perm;
  const void* value;  // by place, not by entry; may be null
  bool wide;
  const void* g;
  const int32_t* arg;
  void* out;
  int64_t channels;
  Dtype message;  // of out
  Dtype state;    // of g
};

// Each works on the rows begin <= i < end.
struct Kernels {
  const char* name;
  void (*propagate)(const Propagate&, int64_t begin, int64_t end);
  void (*update)(const Update&, int64_t begin, int64_t end);
  void (*update_backward)(const UpdateBackward&, int64_t begin, int64_t end);
  void (*sampled)(const Sampled&, int64_t begin, int64_t end);
  void (*max_backward)(const MaxBackward&, int64_t begin, int64_t end);
};

extern const Kernels baseline_kernels;
#if defined(__x86_64__)
extern const Kernels avx2_kernels;
extern const Kernels avx512_kernels;
#endif

inline int64_t size_of(Dtype t) {
  return t == Dtype::f64 ? 8 : t == Dtype::f32 ? 4 : 2;
}

}  // namespace torch_picard
