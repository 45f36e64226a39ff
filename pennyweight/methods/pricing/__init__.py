"""What changes of one weight cost, in nats: `price(change) -> one damage a format`, before any is carried out."""

from pennyweight.methods.pricing.change import Change
from pennyweight.methods.pricing.hessian_trace import HessianTrace
from pennyweight.methods.pricing.kronecker import Kronecker
from pennyweight.methods.pricing.output_error import OutputError

METHODS = (HessianTrace, Kronecker, OutputError)

__all__ = ["METHODS", "Change", "HessianTrace", "Kronecker", "OutputError"]
