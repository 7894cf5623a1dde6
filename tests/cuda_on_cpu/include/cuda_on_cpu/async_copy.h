// cp.async: the copy is issued here and its bytes arrive only when the issuing thread waits for them, as late as the
// GPU may deliver them. A kernel that forgets to wait reads what was in shared memory before.
#pragma once

namespace cuda_on_cpu {

// Copies `source_bytes` and fills the rest of `bytes` with zero.
void async_copy(void* shared, const void* global, unsigned bytes, unsigned source_bytes, const void* site);
void async_copy_commit();
void async_copy_wait(unsigned groups_left);  // delivers all committed groups but the latest `groups_left`
void async_copy_wait_all();                  // delivers everything, committed or not

}  // namespace cuda_on_cpu
