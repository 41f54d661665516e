"""What calls cost: step times and peaks as measured, and how many CPU threads pay."""
