"""Networks; they reach the kernels only through fastconv.nn."""
