"""Many runs from one file: what they share is made once, each resumes, failures are told."""
