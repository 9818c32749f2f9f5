// What the CUDA side starts on a stream, free of torch. The jobs are those of
// the CPU side; their `stats` and `galpha` are set here, to sums of parts.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>

#include "../cpu/kernels.h"

namespace torch_picard {
namespace cuda {

constexpr int kSums = 2;  // stats has |z - x|^2 and |z|^2 of a segment

// Rows that are one problem: all of them, or from one offset of ptr to the
// next. Those that are not active are left as they are.
struct Segments {
  const int64_t* ptr;
  const bool* active;
  int64_t size;
};

// Where kernels go, and memory that lives until they have run.
struct Place {
  cudaStream_t stream;
  int device;
  std::function<double*(int64_t)> scratch;
};

// Bits of what check() finds; the lowest one that is set counts.
enum Defect { kStart = 1, kEnd = 2, kFalls = 4, kOutside = 8, kPtr = 16 };

// Sets bits of `*found`, on the device, or, where it is null, stops the
// device with a failed assertion. The rows of the graph are `rows`.
void check(const Propagate& job, int64_t rows, const Segments& segments,
           int* found, const Place& place);

// Nothing is read outside of the tensors, whatever the indices: entries that
// point outside do not count. `stats` is [size, 2], on the device, or null.
void propagate(Propagate job, int64_t rows, const Segments& segments,
               double* stats, const Place& place);
void update(Update job, int64_t rows, const Segments& segments, double* stats,
            const Place& place);
void update_backward(UpdateBackward job, int64_t rows,
                     const Segments& segments, double* galpha,
                     const Place& place);
void sampled(const Sampled& job, int64_t rows, int64_t entries,
             int64_t sources, const Place& place);
void max_backward(const MaxBackward& job, int64_t rows, int64_t entries,
                  int64_t sources, const Place& place);

}  // namespace cuda
}  // namespace torch_picard
