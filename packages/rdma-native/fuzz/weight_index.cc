// Indexes of sharded models: every shard that comes out is a file of the folder.
#include "model/weight_index.h"

#include <fcntl.h>
#include <unistd.h>

#include "base/descriptor.h"
#include "fuzz.h"

namespace weightline::fuzz {

namespace {

constexpr const char* kIndex = "model.safetensors.index.json";

std::string indexFile() { return privateFolder() + "/" + kIndex; }

const std::map<std::string, FolderEntry>& folder() {
  static const std::map<std::string, FolderEntry> files = {{kIndex, {indexFile(), "file"}}, {"a.safetensors", {"/a", "file"}}, {"part a/0.safetensors", {"/b", "file"}}, {"pipe.safetensors", {"", "FIFO"}}};
  return files;
}

}  // namespace

Target describe() {
  Target target;
  target.name = "weight_index";
  target.seeds = {bytesOf(R"({"metadata":{"total_size":12},"weight_map":{"w":"a.safetensors","x.y":"part a/0.safetensors"}})"), bytesOf(R"({"weight_map":{"w":"a.safetensors"}})"),
                  bytesOf(R"({"weight_map":{"w":"pipe.safetensors"}})"), bytesOf(R"({"weight_map":{"w":"missing.safetensors"}})"), bytesOf(R"({"weight_map":{}})")};
  target.tokens = {"\"weight_map\":{", "a.safetensors", "part a/0.safetensors", "..", "/", "../a.safetensors", "null", "[]", "\\u0000", "\":\""};
  privateFolder();
  return target;
}

}  // namespace weightline::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  using namespace weightline;
  static const Descriptor file(::open(fuzz::indexFile().c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (::ftruncate(file.get(), 0) != 0 || ::pwrite(file.get(), data, bytes, 0) != static_cast<ssize_t>(bytes)) std::abort();
  try {
    const WeightIndex index = readIndex(fuzz::kIndex, fuzz::folder());
    for (const std::string& shard : index.shards) {
      if (!fuzz::folder().contains(shard) || fuzz::folder().at(shard).type != "file") fuzz::broken("shard " + shard + " is no file of the folder");
    }
    for (const auto& [tensor, shard] : index.shardOf) {
      if (!index.shards.contains(shard)) fuzz::broken("tensor " + tensor + " lies in no shard");
    }
  } catch (const Fault& fault) {
    fuzz::expectFault(fault, {Code::kCorrupt, Code::kRefused});
  }
  return 0;
}
