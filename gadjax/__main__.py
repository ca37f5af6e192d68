"""The same as the command `gadjax`: python -m gadjax train --config=demo"""

from gadjax.cli import main

main()
