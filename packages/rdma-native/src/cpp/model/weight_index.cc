#include "model/weight_index.h"

#include <fcntl.h>

#include <cerrno>
#include <vector>

#include "base/descriptor.h"
#include "base/fault.h"
#include "base/json.h"
#include "layout/layout.h"
#include "model/safetensors.h"
#include "store/files.h"

namespace weightline {

namespace {

constexpr std::string_view kUsualName = "model.safetensors.index.json";
constexpr std::string_view kSuffix = ".safetensors.index.json";

std::string readText(const std::string& real, const std::string& path) {
  const Descriptor file(::open(real.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  if (!file.valid()) throw systemFault(errno, "opening " + path).field(path);
  const uint64_t bytes = files::sizeOf(file.get());
  if (bytes > kMaxSafetensorsHeaderBytes) {
    throw Fault(Code::kRefused, path + " has " + std::to_string(bytes) + " bytes; an index has at most " + std::to_string(kMaxSafetensorsHeaderBytes)).field(path);
  }
  std::string text(bytes, '\0');
  text.resize(files::readFully(file.get(), reinterpret_cast<uint8_t*>(text.data()), bytes, 0, path));
  return text;
}

std::string listed(const std::vector<std::string>& names) {
  std::string text;
  for (size_t i = 0; i < names.size() && i < 20; i++) text += (i > 0 ? ", " : "") + names[i];
  return names.size() > 20 ? text + " and " + std::to_string(names.size() - 20) + " more" : text;
}

}  // namespace

std::string findIndex(const std::map<std::string, FolderEntry>& files) {
  if (files.contains(std::string(kUsualName))) return std::string(kUsualName);
  std::vector<std::string> found;
  for (const auto& [path, entry] : files) {
    if (path.ends_with(kSuffix) && path.find('/') == std::string::npos) found.push_back(path);
  }
  if (found.size() > 1) {
    throw Fault(Code::kRefused, "several indexes lie in the folder: " + listed(found)).field(found[0]).wayOut("keep one, or name it " + std::string(kUsualName));
  }
  return found.empty() ? "" : found[0];
}

WeightIndex readIndex(const std::string& path, const std::map<std::string, FolderEntry>& files) {
  WeightIndex index;
  index.path = path;
  const FolderEntry& entry = files.at(path);
  if (entry.type != "file") throw Fault(Code::kRefused, path + " is a " + entry.type + ", not a file").field(path).value(entry.type);
  const auto fault = [&](const std::string& what) { return Fault(Code::kCorrupt, path + ": " + what).field(path); };
  json::Value root;
  try {
    root = json::parse(readText(entry.real, path));
  } catch (const Fault& e) {
    if (!e.field().empty()) throw;
    throw fault(e.what());
  }
  const json::Value* map = root.find("weight_map");
  if (map == nullptr || !map->is(json::Value::Type::kObject)) throw fault("it has no \"weight_map\" object");
  std::vector<std::string> missing;
  for (const auto& [tensor, shard] : map->object) {
    if (!shard.is(json::Value::Type::kString)) throw fault("tensor " + json::quote(tensor) + " is not given to a file");
    if (!safeRelativePath(shard.text)) throw fault("tensor " + json::quote(tensor) + " is given to " + json::quote(shard.text) + ", which leaves the folder").value(shard.text).limit("a path inside the folder");
    const auto [known, fresh] = index.shardOf.emplace(tensor, shard.text);
    if (!fresh && known->second != shard.text) throw fault("tensor " + json::quote(tensor) + " is given to " + known->second + " and to " + shard.text);
    if (index.shards.insert(shard.text).second && !files.contains(shard.text)) missing.push_back(shard.text);
  }
  if (index.shards.empty()) throw fault("its weight_map is empty");
  if (!missing.empty()) {
    throw Fault(Code::kRefused, path + " names " + std::to_string(missing.size()) + " of " + std::to_string(index.shards.size()) + " files that are not there: " + listed(missing) + "; incomplete download?")
        .field(path).value(listed(missing)).wayOut("fetch the missing files, or the model again");
  }
  for (const std::string& shard : index.shards) {
    if (files.at(shard).type != "file") throw Fault(Code::kRefused, shard + " is a " + files.at(shard).type + ", not a file").field(shard).value(files.at(shard).type);
  }
  return index;
}

}  // namespace weightline
