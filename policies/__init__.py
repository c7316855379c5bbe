"""The built-in policies, one per file: who leaves a tier, who enters it, what is fetched ahead."""
