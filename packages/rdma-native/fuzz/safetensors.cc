// Headers of safetensors files: what is taken covers the data without a hole, each name once.
// Input: u64 bytes that the file goes on with (sparse), then the file.
#include "model/safetensors.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <set>

#include "base/descriptor.h"
#include "fuzz.h"
#include "layout/layout.h"
#include "safetensors_input.h"

namespace weightline::fuzz {

namespace {

constexpr uint64_t kMaxTail = 1ull << 41;

Bytes withTail(uint64_t tail, const Bytes& file) {
  Bytes input(8);
  std::memcpy(input.data(), &tail, sizeof(tail));
  input.insert(input.end(), file.begin(), file.end());
  return input;
}

}  // namespace

Target describe() {
  Target target;
  target.name = "safetensors";
  for (const auto& [header, data] : safetensorsSeeds()) target.seeds.push_back(withTail(data > 4096 ? data : 0, safetensorsFile(header, data > 4096 ? 0 : data)));
  target.seeds.push_back(withTail(0, bytesOf("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")));
  target.tokens = safetensorsTokens();
  target.mend = [](Bytes& input, Random&) {
    if (input.size() > 16) mendSafetensors(input, 8);
  };
  return target;
}

void check(const SafetensorsHeader& header, uint64_t dataAt, uint64_t fileBytes) {
  uint64_t at = dataAt;
  std::set<std::string> names;
  for (const SafetensorsTensor& tensor : header.tensors) {
    if (tensor.begin != at || tensor.end < tensor.begin || tensor.end > fileBytes) broken("tensor " + tensor.name + " leaves a hole or the file");
    if (!names.insert(tensor.name).second || tensor.name.size() > kMaxNameBytes || tensor.shape.size() > kMaxRank) broken("a name twice, a name or rank above its limit");
    at = tensor.end;
  }
  if (at != fileBytes) broken("bytes at the end that belong to nobody");
}

}  // namespace weightline::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  using namespace weightline;
  static const Descriptor file(::memfd_create("safetensors", MFD_CLOEXEC));
  if (bytes < 8) return 0;
  uint64_t tail = 0, headerBytes = 0;
  std::memcpy(&tail, data, sizeof(tail));
  if (bytes >= 16) std::memcpy(&headerBytes, data + 8, sizeof(headerBytes));
  const uint64_t size = bytes - 8 + tail % fuzz::kMaxTail;
  if (::ftruncate(file.get(), 0) != 0 || ::pwrite(file.get(), data + 8, bytes - 8, 0) != static_cast<ssize_t>(bytes - 8) || ::ftruncate(file.get(), static_cast<off_t>(size)) != 0) std::abort();
  try {
    fuzz::check(readSafetensorsHeader(file.get(), size, "model.safetensors"), 8 + headerBytes, size);
  } catch (const Fault& fault) {
    fuzz::expectFault(fault, {Code::kCorrupt, Code::kRefused});
  }
  return 0;
}
