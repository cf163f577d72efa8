// Ends FUSE file systems whose server does not answer (Documentation/filesystems/fuse.rst, "fusectl").
#pragma once

#include <cstdint>

namespace weightline {

// The number by which the kernel knows a file's FUSE connection, if it has one; asks nobody but the kernel. 0 otherwise.
uint32_t deviceMinorOf(int fd);
// Aborts the connection of that number: all that waits for it fails at once. False when there is none, or without the right
// (CAP_SYS_ADMIN; kernel 5.2).
bool abortFuseConnection(uint32_t minor);

}  // namespace weightline
