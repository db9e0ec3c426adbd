"""Look at what a model does with a text: who attends to whom, and what every token costs.

maps = look.attention(lm, "The value of the function is returned.")
look.attention_page(maps)  # HTML that stands alone
look.loss_page(look.losses(lm, "The value of the function is returned."))
"""

from flaxlm.look.attention import Maps, attention
from flaxlm.look.attention_page import attention_page
from flaxlm.look.loss import Token, losses
from flaxlm.look.loss_page import loss_page

__all__ = ["Maps", "Token", "attention", "attention_page", "loss_page", "losses"]
