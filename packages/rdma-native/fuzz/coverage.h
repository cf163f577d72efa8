// Which code an input reached: edges between instrumented blocks (GCC's -fsanitize-coverage=trace-pc), counted in buckets.
#pragma once

#include <cstddef>

namespace weightline::fuzz {

void clearCoverage();
// True when the code run since clearCoverage has an edge, or a count of one, that no input had before.
bool coveredNew();
// Edges that any input had.
size_t coveredEdges();

}  // namespace weightline::fuzz
