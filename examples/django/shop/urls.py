"""The addresses of the service."""

from django.urls import path

from shop.views import OnePurchase, Purchases

urlpatterns = [
    path("purchases", Purchases.as_view()),
    path("purchases/<int:key>", OnePurchase.as_view()),
]
