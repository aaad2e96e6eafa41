"""``python -m serving``: the endpoint, set up by environment variables (see :class:`EndpointSettings`)."""

from __future__ import annotations

import sys

from serving.endpoint import EndpointMisconfigured, EndpointSettings, run_endpoint


def main() -> None:
    """Run the endpoint; exit 2 where its settings are wrong."""
    try:
        run_endpoint(EndpointSettings.from_environment())
    except EndpointMisconfigured as error:
        print(f"endpoint: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
