#include "model/safetensors.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <set>
#include <string_view>
#include <unordered_map>

#include "base/fault.h"
#include "base/json.h"
#include "layout/layout.h"
#include "model/tensor_form.h"
#include "store/files.h"

namespace weightline {

namespace {

using json::Value;

constexpr std::string_view kLfsMark = "version https://git-lfs.github.com/spec/";
constexpr uint64_t kLfsPointerMaxBytes = 1024;

class HeaderReader {
 public:
  HeaderReader(const std::string& path, uint64_t dataBytes)
      : path_(path), dataBytes_(dataBytes), form_([this](const std::string& what) { return fault(what); }) {}

  SafetensorsHeader read(std::string_view text, uint64_t dataAt) {
    json::parseMembers(text, [&](std::string name, Value value) { member(std::move(name), value); });
    std::stable_sort(header_.tensors.begin(), header_.tensors.end(),
                     [](const auto& a, const auto& b) { return a.begin != b.begin ? a.begin < b.begin : a.end < b.end; });
    checkCoverage();
    for (SafetensorsTensor& tensor : header_.tensors) {
      tensor.begin += dataAt;
      tensor.end += dataAt;
    }
    return std::move(header_);
  }

 private:
  Fault fault(const std::string& what) const { return Fault(Code::kCorrupt, path_ + ": " + what).field(path_); }

  void member(std::string name, const Value& value) {
    if (name == "__metadata__") {
      metadata(value);
      return;
    }
    const std::string where = "tensor " + json::quote(name);
    if (!value.is(Value::Type::kObject)) throw fault(where + " is not described by an object");
    form_.checkName(name, where);
    SafetensorsTensor tensor;
    tensor.name = std::move(name);
    form_.read(value, where, tensor.dtype, tensor.shape);
    readOffsets(tensor, value, where);
    const auto [first, fresh] = byName_.emplace(tensor.name, header_.tensors.size());
    if (!fresh) {
      const SafetensorsTensor& other = header_.tensors[first->second];
      throw fault(where + " appears twice: at " + range(other) + " and at " + range(tensor)).value(range(tensor));
    }
    if (header_.tensors.size() >= kMaxItems) throw fault("more than " + std::to_string(kMaxItems) + " tensors").limit(std::to_string(kMaxItems));
    header_.tensors.push_back(std::move(tensor));
  }

  void metadata(const Value& value) {
    if (metadataSeen_) throw fault("__metadata__ appears twice");
    metadataSeen_ = true;
    if (value.is(Value::Type::kNull)) return;
    bool strings = value.is(Value::Type::kObject);
    for (const auto& [key, entry] : value.object) strings = strings && entry.is(Value::Type::kString);
    if (!strings) throw fault("__metadata__ is not an object of strings");
  }

  static std::string range(const SafetensorsTensor& tensor) { return std::to_string(tensor.begin) + "-" + std::to_string(tensor.end); }

  void readOffsets(SafetensorsTensor& tensor, const Value& value, const std::string& where) {
    const Value& offsets = form_.need(value, "data_offsets", Value::Type::kArray, where);
    if (offsets.array.size() != 2 || !offsets.array[0].is(Value::Type::kInteger) || !offsets.array[1].is(Value::Type::kInteger)) {
      throw fault(where + " has data_offsets that are not two whole numbers");
    }
    tensor.begin = offsets.array[0].integer;
    tensor.end = offsets.array[1].integer;
    if (tensor.begin > tensor.end) throw fault(where + " has offsets " + range(tensor) + " that end before they begin").value(range(tensor));
    const std::optional<uint64_t> bytes = form_.bytesOf(tensor.dtype, tensor.shape, where);
    if (!bytes) {
      if (unknown_.insert(tensor.dtype).second) header_.warnings.push_back(path_ + ": dtype " + tensor.dtype + " is not known: its tensors are carried by their offsets");
      return;
    }
    if (*bytes != tensor.end - tensor.begin) {
      throw fault(where + " has " + std::to_string(tensor.end - tensor.begin) + " bytes at " + range(tensor) + "; its dtype and shape need " + std::to_string(*bytes))
          .value(std::to_string(tensor.end - tensor.begin)).limit(std::to_string(*bytes));
    }
  }

  // The tensors must cover the data without a hole or an overlap.
  void checkCoverage() const {
    uint64_t at = 0;
    const SafetensorsTensor* before = nullptr;
    for (const SafetensorsTensor& tensor : header_.tensors) {
      const std::string where = "tensor " + json::quote(tensor.name) + " at " + range(tensor);
      if (tensor.begin < at) throw fault(where + " overlaps tensor " + json::quote(before->name) + " at " + range(*before)).value(range(tensor));
      if (tensor.begin > at) throw fault(where + " leaves a hole: bytes " + std::to_string(at) + "-" + std::to_string(tensor.begin) + " belong to nobody").value(range(tensor));
      at = tensor.end;
      before = &tensor;
    }
    if (at != dataBytes_) {
      const bool shorter = dataBytes_ < at;
      throw Fault(Code::kRefused, path_ + " is " + (shorter ? "shorter" : "longer") + " than its header says: tensors end at byte " + std::to_string(at) + " of the data, the file has " +
                                      std::to_string(dataBytes_))
          .field(path_).value(std::to_string(dataBytes_)).limit(std::to_string(at)).wayOut(shorter ? "incomplete download? fetch the file again" : "fetch the file again");
    }
  }

  const std::string path_;
  const uint64_t dataBytes_;
  const TensorForm form_;
  SafetensorsHeader header_;
  std::unordered_map<std::string, size_t> byName_;
  std::set<std::string> unknown_;
  bool metadataSeen_ = false;
};

// A pointer of Git LFS has the model's name but is three lines of text.
void refuseLfsPointer(int descriptor, uint64_t fileBytes, const std::string& path) {
  if (fileBytes > kLfsPointerMaxBytes) return;
  std::string text(fileBytes, '\0');
  text.resize(files::readFully(descriptor, reinterpret_cast<uint8_t*>(text.data()), text.size(), 0, path));
  if (!text.starts_with(kLfsMark)) return;
  // Digits alone: what else follows may be no text.
  const size_t at = text.find("\nsize ");
  const std::string digits = at == std::string::npos ? "" : text.substr(at + 6, text.find_first_not_of("0123456789", at + 6) - at - 6);
  const std::string size = digits.empty() ? "an unknown number of" : digits;
  throw Fault(Code::kRefused, path + " is a Git LFS pointer for " + size + " bytes, not the file itself")
      .field(path).value("a pointer of " + std::to_string(fileBytes) + " bytes").limit(size + " bytes").wayOut("run `git lfs pull` in its repository, or download the file");
}

}  // namespace

SafetensorsHeader readSafetensorsHeader(int descriptor, uint64_t fileBytes, const std::string& path) {
  refuseLfsPointer(descriptor, fileBytes, path);
  std::array<uint8_t, 8> length{};
  if (files::readFully(descriptor, length.data(), length.size(), 0, path) < length.size()) {
    throw Fault(Code::kCorrupt, path + " has " + std::to_string(fileBytes) + " bytes; a safetensors file begins with the 8 bytes of its header's length")
        .field(path).value(std::to_string(fileBytes)).limit("8 or more").wayOut("fetch the file again");
  }
  uint64_t headerBytes = 0;
  std::memcpy(&headerBytes, length.data(), sizeof(headerBytes));
  if (headerBytes > kMaxSafetensorsHeaderBytes) {
    throw Fault(Code::kRefused, path + ": its header says that it has " + std::to_string(headerBytes) + " bytes; at most " + std::to_string(kMaxSafetensorsHeaderBytes) + " are read")
        .field(path).value(std::to_string(headerBytes)).limit(std::to_string(kMaxSafetensorsHeaderBytes)).wayOut("is it a safetensors file? stock readers stop there too");
  }
  if (headerBytes > fileBytes - length.size()) {
    throw Fault(Code::kRefused, path + " is shorter than its header says: the header alone has " + std::to_string(headerBytes) + " bytes, the file " + std::to_string(fileBytes))
        .field(path).value(std::to_string(fileBytes)).limit(std::to_string(headerBytes + length.size())).wayOut("incomplete download? fetch the file again");
  }
  std::string text(headerBytes, '\0');
  text.resize(files::readFully(descriptor, reinterpret_cast<uint8_t*>(text.data()), headerBytes, length.size(), path));
  const uint64_t dataAt = length.size() + headerBytes;
  if (text.empty() || text.front() != '{') throw Fault(Code::kCorrupt, path + ": its header does not begin with '{'").field(path).wayOut("is it a safetensors file?");
  try {
    return HeaderReader(path, fileBytes - dataAt).read(text, dataAt);
  } catch (const Fault& fault) {
    if (!fault.field().empty()) throw;
    throw Fault(Code::kCorrupt, path + ": its header is " + fault.what()).field(path).value(fault.value());
  }
}

}  // namespace weightline
