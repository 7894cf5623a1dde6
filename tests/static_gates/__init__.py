"""What can be known of a kernel without running it: registers, spills, instruction mix, occupancy."""
