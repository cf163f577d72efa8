#define WEIGHTLINE_XXH3_NAME baseline
#include "digest/xxh3_one_shot.inc"
