"""The system under investigation in miniature: real servers, small pods, a past, and faults to practise on."""
