"""What every role shares: clock, driver, ticks, histogram, sockets, the frame of a process."""
