// Reads and checks the header of a safetensors file, by pread alone.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace weightline {

// What the stock reader takes; a larger header is refused before memory is taken for it.
inline constexpr uint64_t kMaxSafetensorsHeaderBytes = 100'000'000;

struct SafetensorsTensor {
  std::string name, dtype;
  std::vector<uint64_t> shape;
  uint64_t begin = 0, end = 0;  // within the file
};

struct SafetensorsHeader {
  std::vector<SafetensorsTensor> tensors;  // in the file's order of offsets
  std::vector<std::string> warnings;
};

// `descriptor` is open for reading and has `fileBytes` bytes; `path` is for messages. Accepts what the safetensors package
// 0.8 opens, and dtypes that nobody knows yet, by their offsets. Throws Refused (an LFS pointer, a file of another size
// than its header says) or Corrupt, naming tensor, value and limit.
SafetensorsHeader readSafetensorsHeader(int descriptor, uint64_t fileBytes, const std::string& path);

}  // namespace weightline
