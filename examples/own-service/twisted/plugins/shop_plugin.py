"""C{twistd shop} and C{twist shop}. This folder must not have an C{__init__.py}."""

from twisted.application.service import ServiceMaker

shop = ServiceMaker("shop", "shop.tap", "A shop.", "shop")
