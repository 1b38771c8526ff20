"""What a step is: its context, samples, check and cases; `parts` has checks that read several things."""
