"""Imported by the process from which notebooks are forked."""

from notebooks import import_all

import_all()
