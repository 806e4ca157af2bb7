"""The tables of the service."""

from __future__ import annotations

from typing import ClassVar

from django.db import models

from cachesync.contrib.django import CachedRows


class Customer(models.Model):
    """A customer, with what it has spent on all of its purchases."""

    name = models.TextField()
    spent = models.DecimalField(max_digits=12, decimal_places=2, default=0)

    cached: ClassVar[CachedRows] = CachedRows()

    class Meta:
        """As in the entities file."""

        db_table = "customer"

    def __str__(self) -> str:
        return self.name


class Purchase(models.Model):
    """A purchase."""

    customer = models.ForeignKey(Customer, models.CASCADE)
    amount = models.DecimalField(max_digits=12, decimal_places=2)
    note = models.TextField(default="")

    cached: ClassVar[CachedRows] = CachedRows()

    class Meta:
        """As in the entities file."""

        db_table = "purchase"

    def __str__(self) -> str:
        return f"{self.amount} {self.note}"
