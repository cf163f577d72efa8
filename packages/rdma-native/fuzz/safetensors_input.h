// Safetensors files for the targets that read them.
#pragma once

#include <utility>

#include "fuzz.h"

namespace weightline::fuzz {

// A file of this header and so many bytes of data.
Bytes safetensorsFile(std::string_view header, uint64_t dataBytes);
// Headers, each with the bytes of its data.
std::vector<std::pair<std::string, uint64_t>> safetensorsSeeds();
std::vector<std::string> safetensorsTokens();
// Sets the header's length, at `at`, to where the text from there on ends.
void mendSafetensors(Bytes& input, size_t at);

}  // namespace weightline::fuzz
