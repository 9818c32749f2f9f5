#define ISA baseline
#include "kernels.inl"
