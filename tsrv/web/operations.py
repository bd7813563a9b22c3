"""
All operator pages, as one resource.
"""

from __future__ import annotations

from collections.abc import Sequence

from twisted.web.resource import Resource

from ..asyncmodule import ReactorTime
from ..startup import Startup
from .health import Live, Ready, StartupPage
from .metrics import Metrics
from .origin import Proxies
from .status import Status
from .traffic import Traffic

__all__ = ["Operations"]


class Operations(Status):
    """
    The status page, and below it C{livez}, C{readyz}, C{startup} and C{metrics}. Use
    this resource as the root of a site, or mount it at any path::

        root.putChild(b"internal", Operations(startup, reactor))

    L{putOn} adds the pages to the root of an application instead.
    """

    def __init__(
        self,
        startup: Startup,
        reactor: ReactorTime,
        *,
        traffic: Traffic | None = None,
        links: Sequence[tuple[str, str]] = (),
        name: str = "tsrv",
        version: str = "",
        operatorsOnly: bool = False,
        proxies: Proxies | None = None,
    ) -> None:
        """
        @param startup: The modules.
        @param reactor: Provides the time.
        @param traffic: The counts of requests, if there are any; pass the same object
            to each L{Site<tsrv.web.site.Site>}.
        @param links: The address and the name of each further page that the status
            page links to. Relative addresses start at the status page.
        @param name: The name of the program.
        @param version: The version of the program, if it has one.
        @param operatorsOnly: Whether only operators can reach these pages. The pages
            then show the messages of errors, and can pause, resume and reset
            modules; see L{Modules<tsrv.web.modules.Modules>}.
        @param proxies: The trusted proxies, by default none.
        """
        paths = ["livez", "readyz", "startup", "metrics"]
        super().__init__(
            startup,
            reactor,
            links=[*links, *((path, path) for path in paths)],
            showErrors=operatorsOnly,
            controls=operatorsOnly,
            proxies=proxies,
            name=name,
            version=version,
        )
        self.putChild(b"livez", Live())
        self.putChild(b"readyz", Ready(startup))
        self.putChild(b"startup", StartupPage(startup, showErrors=operatorsOnly))
        metrics = Metrics(startup, traffic, name=name, version=version)
        self.putChild(b"metrics", metrics)

    def putOn(self, root: Resource) -> None:
        """
        Add these pages to the root of an application, with the status page at C{/}.

        @param root: The root.
        """
        for path, page in self.children.items():
            root.putChild(path, page)
