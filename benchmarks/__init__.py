"""Measurements. Each module prints ratios of medians with their spread and writes a file under results/.

    python -m benchmarks                    # all of them: about 50 minutes on two quiet cores
    python -m benchmarks step sampling      # some of them

Nothing here is timed in tests; nothing here is imported by the package.
"""
