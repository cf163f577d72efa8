// Finds out what a model path holds and makes the layout of it, reading indexes and safetensors headers, never tensors.
#pragma once

#include <string>
#include <vector>

#include "base/cancel.h"
#include "layout/layout.h"

namespace weightline {

// A source file as it was when it was scanned (SourceFile of native.ts).
struct SourceFile {
  std::string path;    // of the segment
  std::string source;  // absolute, links resolved
  uint64_t bytes = 0;
  int64_t mtimeNs = 0;
  uint64_t inode = 0;
  uint64_t device = 0;
};

struct ScanResult {
  Layout layout;
  std::vector<SourceFile> files;  // one for each segment, in the same order
  std::vector<std::string> ignoredFiles;
  std::vector<std::string> warnings;
  uint64_t extraTensors = 0;
  std::string snapshotRevision;
};

// Scans `path` (absolute): a safetensors file, a model folder (with or without an index), or a Hugging Face cache folder.
// Nothing outside `loadRoot` is opened. Throws Fault with the file named: InvalidArgument for a choice that the caller must
// make (several snapshots), NotFound, Refused, PermissionDenied.
ScanResult scanModel(const std::string& path, const std::string& loadRoot, Algorithm algorithm, const Cancel& cancel);

}  // namespace weightline
