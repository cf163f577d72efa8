// A mover must not outlive its agent: two movers would fill the same files.
#pragma once

#include <sys/types.h>

namespace weightline {

// Asks the kernel for SIGKILL when the parent's spawning thread ends, and ends the process at once if `parent` has gone already.
void dieWithParent(pid_t parent);

}  // namespace weightline
