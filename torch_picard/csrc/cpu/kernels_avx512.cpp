#define ISA avx512
#include "kernels.inl"
