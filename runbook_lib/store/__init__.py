"""What is kept, as bytes: archives, records and capsules."""
