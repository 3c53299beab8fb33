"""One trial, or a sweep with -m: ``python run.py -m residual=true,false bn=pre,post``."""

from ablations.command import main

if __name__ == "__main__":
    main()
