// The runtime's interface for tests, in C: runtime.py calls it.
#pragma once

extern "C" {

struct cuda_on_cpu_site_counts {
  const char* place;  // valid until the next call
  int is_shared;
  int flags;  // 1 write, 2 atomic
  unsigned bytes;
  unsigned long long requests, lanes, total_bytes, units, ideal_units;  // units: sectors or wavefronts
};

void cuda_on_cpu_set_order(int order, unsigned seed);
void cuda_on_cpu_set_strict(int strict);
void cuda_on_cpu_set_multiprocessors(int count);
void cuda_on_cpu_reset();

int cuda_on_cpu_error_count();
const char* cuda_on_cpu_error_message(int index);
int cuda_on_cpu_error_occurrences(int index);

int cuda_on_cpu_site_count();
void cuda_on_cpu_site(int index, cuda_on_cpu_site_counts* result);
// Distinct sectors: read and written in the grid, then the same summed over blocks.
void cuda_on_cpu_sectors(unsigned long long* four);

// "kernel\tlaunches\twarps\twarp instructions\tthread instructions\tclass=count class=count ...\n" for each kernel.
const char* cuda_on_cpu_instructions();

}  // extern "C"
