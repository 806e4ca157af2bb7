"""What an operator asks: is every cache right, how far behind is it, why, and what is to be done.

Everything that reads the state of the whole system for people belongs here: the overview of all caches, what
is known of one key, and the verdicts in words. Nothing here changes anything. How the answers are shown is
the matter of the command and of the page.
"""
