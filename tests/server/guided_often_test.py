"""guided_test.py with more sequences."""

import guided_test
from serving import ostro


class GuidedOften(guided_test.Guided):
    SEQUENCES = 16


if __name__ == "__main__":
    ostro.main()
