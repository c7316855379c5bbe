"""What `kvtier doctor` looks at: each module a few checks, each check a few findings, each with what to do."""
