"""The five endpoints of the service."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from django.db import transaction
from django.db.models import F
from django.http import Http404, HttpResponse, JsonResponse
from django.views import View

from shop.models import Customer, Purchase

if TYPE_CHECKING:
    from django.http import HttpRequest


class Purchases(View):
    """All purchases."""

    def get(self, request: HttpRequest) -> JsonResponse:
        """Return the purchases after a key: their keys from the database, their rows from the cache."""
        later = Purchase.objects.filter(pk__gt=int(request.GET.get("after", 0)))
        rows = Purchase.cached.get_many(later.order_by("pk").values_list("pk", flat=True)[:100])
        return JsonResponse([_shown(row) for row in rows.values() if row is not None], safe=False)

    def post(self, request: HttpRequest) -> JsonResponse:
        """Change two tables in one transaction."""
        given = json.loads(request.body, parse_float=Decimal)
        with transaction.atomic():
            purchase = Purchase.objects.create(**given)
            Customer.objects.filter(pk=purchase.customer_id).update(spent=F("spent") + purchase.amount)
        return JsonResponse({"id": purchase.pk}, status=201)


class OnePurchase(View):
    """One purchase."""

    def get(self, _: HttpRequest, key: int) -> JsonResponse:
        """Return a purchase, with its customer."""
        purchase = Purchase.cached.get(key)
        if purchase is None:
            raise Http404
        customer = Customer.cached.get(purchase.customer_id)
        return JsonResponse(
            _shown(purchase) | {"customer": customer and {"name": customer.name, "spent": customer.spent}}
        )

    def patch(self, request: HttpRequest, key: int) -> HttpResponse:
        """Change the note of a purchase."""
        note = json.loads(request.body)["note"]
        if not Purchase.objects.filter(pk=key).update(note=note):
            raise Http404
        return HttpResponse(status=204)

    def delete(self, _: HttpRequest, key: int) -> HttpResponse:
        """Delete a purchase."""
        deleted, _by_model = Purchase.objects.filter(pk=key).delete()
        if not deleted:
            raise Http404
        return HttpResponse(status=204)


def _shown(purchase: Purchase) -> dict[str, Any]:
    return {
        "id": purchase.pk,
        "customer_id": purchase.customer_id,
        "amount": purchase.amount,
        "note": purchase.note,
    }
