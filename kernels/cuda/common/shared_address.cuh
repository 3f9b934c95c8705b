// Where a pointer to shared memory points, as the instructions want it that know no other memory.
#pragma once

__device__ inline unsigned shared_address(const void* pointer) { return unsigned(__cvta_generic_to_shared(pointer)); }
