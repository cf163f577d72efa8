#include "model/scan.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <map>
#include <optional>
#include <unordered_map>

#include "base/descriptor.h"
#include "base/json.h"
#include "model/model_folder.h"
#include "model/safetensors.h"
#include "model/weight_index.h"
#include "store/files.h"

namespace weightline {

namespace {

constexpr std::string_view kSafetensors = ".safetensors";
// Other forms of the same weights: they do not belong to a folder that has safetensors.
constexpr std::array<std::string_view, 7> kOtherWeights = {".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx"};
constexpr std::string_view kCachePrefix = "models--";

bool isRevision(std::string_view name) {
  return name.size() == 40 && std::all_of(name.begin(), name.end(), [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

std::string baseName(const std::string& path) { return path.substr(path.rfind('/') + 1); }
std::string parentOf(const std::string& path) { return path.substr(0, std::max<size_t>(1, path.rfind('/'))); }

bool isFolder(const std::string& path) {
  struct stat status {};
  return ::stat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode);
}

std::string trimmed(std::string text) {
  const size_t end = text.find_last_not_of(" \t\r\n");
  text.resize(end == std::string::npos ? 0 : end + 1);
  return text.substr(std::min(text.size(), text.find_first_not_of(" \t\r\n")));
}

// The snapshot that the root of a Hugging Face cache folder means: what refs/main says, else the only one.
std::string resolveSnapshot(const std::string& root) {
  const std::string snapshots = root + "/snapshots";
  if (const Descriptor ref(::open((root + "/refs/main").c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)); ref.valid()) {
    std::string text(256, '\0');
    text.resize(files::readFully(ref.get(), reinterpret_cast<uint8_t*>(text.data()), text.size(), 0, "refs/main"));
    const std::string name = trimmed(text);
    if (safeRelativePath(name) && isFolder(snapshots + "/" + name)) return snapshots + "/" + name;
  }
  std::vector<std::string> found;
  const Descriptor folder(files::openFolder(snapshots));
  for (const std::string& name : files::listBelow(folder.get(), true)) {
    if (name.find('/') == std::string::npos && isFolder(snapshots + "/" + name)) found.push_back(name);
  }
  std::sort(found.begin(), found.end());
  if (found.size() == 1) return snapshots + "/" + found[0];
  if (found.empty()) throw Fault(Code::kNotFound, root + " has no snapshot").field("path").value(root).wayOut("fetch the model again");
  std::string list;
  for (const std::string& name : found) list += (list.empty() ? "" : ", ") + name;
  throw Fault(Code::kInvalidArgument, root + " has several snapshots and no valid refs/main: " + list)
      .field("path").value(root).limit("one snapshot").wayOut("give the path of one: " + snapshots + "/" + found[0]);
}

// A file that becomes a segment: opened once, looked at, and remembered as it was.
struct OpenedFile {
  Descriptor descriptor;
  SourceFile source;
};

OpenedFile openSource(const std::string& real, const std::string& path) {
  OpenedFile opened;
  opened.descriptor = Descriptor(::open(real.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  if (!opened.descriptor.valid()) throw systemFault(errno, "opening " + real).field(path);
  struct stat status {};
  if (::fstat(opened.descriptor.get(), &status) != 0) throw systemFault(errno, "looking at " + real).field(path);
  if (!S_ISREG(status.st_mode)) throw Fault(Code::kRefused, real + " is a " + typeName(status.st_mode) + ", not a file").field(path).value(typeName(status.st_mode)).limit("a regular file");
  opened.source = {path, real, static_cast<uint64_t>(status.st_size),
                   static_cast<int64_t>(status.st_mtim.tv_sec) * 1'000'000'000 + status.st_mtim.tv_nsec, status.st_ino, status.st_dev};
  return opened;
}

// Gathers segments and tensors; makes the layout at the end.
class Builder {
 public:
  Builder(Algorithm algorithm, const Cancel& cancel, std::string loadRoot) : cancel_(cancel), loadRoot_(std::move(loadRoot)) { result_.layout.algorithm = algorithm; }

  ScanResult& result() { return result_; }

  void addPlain(const std::string& real, const std::string& path) { addFile(openSource(checked(real), path).source); }

  // `index` null: every tensor counts, and one name in two files is an error.
  void addSafetensors(const std::string& real, const std::string& path, const WeightIndex* index) {
    cancel_.check();
    const OpenedFile opened = openSource(checked(real), path);
    SafetensorsHeader header = readSafetensorsHeader(opened.descriptor.get(), opened.source.bytes, path);
    result_.warnings.insert(result_.warnings.end(), header.warnings.begin(), header.warnings.end());
    addFile(opened.source);
    for (SafetensorsTensor& tensor : header.tensors) {
      if (index != nullptr) {
        const auto given = index->shardOf.find(tensor.name);
        if (given == index->shardOf.end() || given->second != path) {
          result_.extraTensors++;
          continue;
        }
      }
      const auto [other, fresh] = fileOf_.emplace(tensor.name, path);
      if (!fresh) {
        throw Fault(Code::kRefused, "tensor " + json::quote(tensor.name) + " is in " + other->second + " and in " + path + ", and no index says which counts")
            .field(path).value(tensor.name).wayOut("remove the file that does not belong, or add model.safetensors.index.json");
      }
      Item item;
      item.name = std::move(tensor.name);
      item.dtype = std::move(tensor.dtype);
      item.shape = std::move(tensor.shape);
      item.bytes = tensor.end - tensor.begin;
      item.offset = tensor.begin;
      items_.emplace_back(path, std::move(item));
    }
  }

  void checkIndexIsComplete(const WeightIndex& index) const {
    for (const auto& [tensor, shard] : index.shardOf) {
      if (!fileOf_.contains(tensor)) {
        throw Fault(Code::kRefused, index.path + " gives tensor " + json::quote(tensor) + " to " + shard + ", which does not have it").field(index.path).value(tensor).wayOut("fetch the model again");
      }
    }
  }

  ScanResult finish() {
    Layout& layout = result_.layout;
    std::vector<SourceFile>& files = result_.files;
    if (files.size() > kMaxSegments) {
      throw Fault(Code::kRefused, "the folder has " + std::to_string(files.size()) + " files; at most " + std::to_string(kMaxSegments) + " are taken")
          .field("path").value(std::to_string(files.size())).limit(std::to_string(kMaxSegments));
    }
    std::sort(files.begin(), files.end(), [](const SourceFile& a, const SourceFile& b) { return a.path < b.path; });
    std::unordered_map<std::string, uint32_t> segmentOf;
    for (const SourceFile& file : files) {
      segmentOf[file.path] = static_cast<uint32_t>(layout.segments.size());
      layout.segments.push_back({file.bytes, file.path});
    }
    layout.chunkBytes = chunkBytesFor(layout.totalBytes());
    std::sort(items_.begin(), items_.end(), [](const auto& a, const auto& b) { return a.second.name < b.second.name; });
    for (auto& [path, item] : items_) {
      item.segment = item.bytes == 0 ? 0 : segmentOf[path];
      if (item.bytes == 0) item.offset = 0;
      item.alias = static_cast<uint32_t>(layout.items.size());
      layout.items.push_back(std::move(item));
    }
    std::sort(result_.ignoredFiles.begin(), result_.ignoredFiles.end());
    return std::move(result_);
  }

 private:
  const std::string& checked(const std::string& real) const {
    if (!isWithin(real, loadRoot_)) {
      throw Fault(Code::kPermissionDenied, real + " is outside " + loadRoot_ + ", below which this node loads").field("path").value(real).limit("below " + loadRoot_).wayOut("start the agent with --load-root " + parentOf(real));
    }
    return real;
  }
  void addFile(const SourceFile& file) { result_.files.push_back(file); }

  const Cancel& cancel_;
  const std::string loadRoot_;
  ScanResult result_;
  std::unordered_map<std::string, std::string> fileOf_;
  std::vector<std::pair<std::string, Item>> items_;
};

bool isOtherWeights(const std::string& path) {
  return std::any_of(kOtherWeights.begin(), kOtherWeights.end(), [&](std::string_view suffix) { return path.ends_with(suffix); });
}

void scanFolder(Builder& builder, const std::string& folder, const std::string& bound, const Cancel& cancel) {
  const std::map<std::string, FolderEntry> found = listModelFolder(folder, bound, cancel);
  const std::string indexPath = findIndex(found);
  std::optional<WeightIndex> index;
  if (!indexPath.empty()) index = readIndex(indexPath, found);
  bool anySafetensors = index.has_value();
  for (const auto& [path, entry] : found) anySafetensors = anySafetensors || path.ends_with(kSafetensors);

  for (const auto& [path, entry] : found) {
    const bool shard = index ? index->shards.contains(path) : path.ends_with(kSafetensors);
    const bool foreign = anySafetensors && !shard && (path.ends_with(kSafetensors) || isOtherWeights(path));
    if (shard && entry.type != "file") throw Fault(Code::kRefused, path + " is a " + entry.type + ", not a file").field(path).value(entry.type).limit("a regular file");
    if (foreign || entry.type != "file") {
      builder.result().ignoredFiles.push_back(path);
    } else if (shard) {
      builder.addSafetensors(entry.real, path, index ? &*index : nullptr);
    } else {
      builder.addPlain(entry.real, path);
    }
  }
  if (index) builder.checkIndexIsComplete(*index);
  if (builder.result().files.empty()) throw Fault(Code::kRefused, folder + " has no files that could be loaded").field("path").value(folder);
}

}  // namespace

ScanResult scanModel(const std::string& path, const std::string& loadRoot, Algorithm algorithm, const Cancel& cancel) {
  if (!path.starts_with('/')) throw Fault(Code::kInvalidArgument, "the path \"" + path + "\" is not absolute").field("path").value(path);
  if (loadRoot.empty()) {
    throw Fault(Code::kPermissionDenied, "this node loads no files: it runs in a container without --load-root").field("path").value(path).wayOut("mount the models and start the agent with --load-root");
  }
  const std::string root = resolvePath(loadRoot);
  std::string real = resolvePath(path);
  if (!isWithin(real, root)) {
    throw Fault(Code::kPermissionDenied, path + " is outside " + root + ", below which this node loads").field("path").value(path).limit("below " + root).wayOut("start the agent with another --load-root");
  }
  struct stat status {};
  if (::stat(real.c_str(), &status) != 0) throw systemFault(errno, "looking at " + path).field("path").value(path);
  Builder builder(algorithm, cancel, root);
  if (!S_ISDIR(status.st_mode)) {
    if (!S_ISREG(status.st_mode)) throw Fault(Code::kRefused, path + " is a " + typeName(status.st_mode) + ", not a file or folder").field("path").value(path);
    const std::string name = baseName(path);
    builder.addSafetensors(real, safeRelativePath(name) ? name : baseName(real), nullptr);
    return builder.finish();
  }
  if (baseName(real).starts_with(kCachePrefix) && isFolder(real + "/snapshots")) real = resolvePath(resolveSnapshot(real));
  std::string bound = real;
  const std::string grandparent = parentOf(parentOf(real));
  if (baseName(parentOf(real)) == "snapshots" && baseName(grandparent).starts_with(kCachePrefix)) {
    bound = grandparent;
    if (isRevision(baseName(real))) builder.result().snapshotRevision = baseName(real);
  }
  scanFolder(builder, real, bound, cancel);
  return builder.finish();
}

}  // namespace weightline
