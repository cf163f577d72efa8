#if defined(__x86_64__)
#define XXH_VECTOR XXH_AVX2
#define WEIGHTLINE_XXH3_NAME avx2
#include "digest/xxh3_one_shot.inc"
#endif
